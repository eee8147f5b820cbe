//! The scopes and the audience that a route requires of a token, and how its clients are asked for one, as the gateway's operator
//! configures them.

use std::borrow::Cow;

use super::error::GatewayError;
use tokenward_core::token::scope;

/// The longest part of an unknown parameter's name that an error repeats, in characters.
const MAX_SHOWN_NAME_CHARS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Requirements<'q> {
    /// All of them are required.
    pub(super) scopes: Vec<Cow<'q, str>>,
    pub(super) audience: Option<Cow<'q, str>>,
    pub(super) challenge: Challenge,
}

/// The scheme that a 401 asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Challenge {
    #[default]
    Bearer,
    /// For clients such as git and docker, which send a password only if they are asked for one. It makes browsers open a
    /// dialog, so it is not the default.
    Basic,
}

impl<'q> Requirements<'q> {
    /// Parses a query, or what has its form. It is the operator's alone, so an unknown parameter is a mistake, which would
    /// leave a route open.
    pub(super) fn from_query(query: &'q str) -> Result<Self, GatewayError> {
        if query.is_empty() {
            return Ok(Self::default());
        }
        Self::from_parameters(form_urlencoded::parse(query.as_bytes()))
    }

    /// Parses a path segment of a query's form, which requires something. Clients of an OpenAPI document encode it as a whole,
    /// `=` and `&` included.
    pub(super) fn from_segment(segment: &'q str) -> Result<Self, GatewayError> {
        let requirements = Self::of_segment(segment)?;
        if requirements.scopes.is_empty() && requirements.audience.is_none() {
            return Err(GatewayError::Malformed(
                "the segment below /require names neither scope nor audience".into(),
            ));
        }
        Ok(requirements)
    }

    fn of_segment(segment: &'q str) -> Result<Self, GatewayError> {
        if segment.contains(['=', '&']) {
            return Self::from_query(segment);
        }
        // A query of one name and no value, which is thereby decoded.
        let Some((query, _)) = form_urlencoded::parse(segment.as_bytes()).next() else {
            return Ok(Self::default());
        };
        let Requirements { scopes, audience, challenge } = Requirements::from_query(&query)?;
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Ok(Self { scopes: scopes.into_iter().map(owned).collect(), audience: audience.map(owned), challenge })
    }

    /// Takes parameters that are already decoded.
    pub(super) fn from_parameters(
        parameters: impl IntoIterator<Item = (Cow<'q, str>, Cow<'q, str>)>,
    ) -> Result<Self, GatewayError> {
        let (mut requirements, mut challenge) = (Self::default(), None);
        for (name, value) in parameters {
            match &*name {
                "scope" => {
                    let before = requirements.scopes.len();
                    let scopes = value.split_ascii_whitespace().map(|scope| Cow::Owned(scope.to_owned()));
                    requirements.scopes.extend(scopes);
                    if requirements.scopes.len() == before {
                        return Err(GatewayError::Malformed(
                            "scope is empty: leave it out, or name one".into(),
                        ));
                    }
                }
                "audience" if requirements.audience.is_some() => {
                    return Err(GatewayError::Malformed("more than one audience".into()));
                }
                "audience" if value.is_empty() => {
                    return Err(GatewayError::Malformed(
                        "audience is empty: leave it out, or name one".into(),
                    ));
                }
                "audience" => requirements.audience = Some(value),
                "challenge" if challenge.is_some() => {
                    return Err(GatewayError::Malformed("more than one challenge".into()));
                }
                "challenge" => {
                    challenge = Some(match value {
                        value if value.eq_ignore_ascii_case("Bearer") => Challenge::Bearer,
                        value if value.eq_ignore_ascii_case("Basic") => Challenge::Basic,
                        _ => return Err(GatewayError::Malformed("challenge is Bearer or Basic".into())),
                    });
                }
                _ => {
                    let name: String = name.chars().take(MAX_SHOWN_NAME_CHARS).collect();
                    return Err(GatewayError::Malformed(
                        format!("unknown parameter {name:?}: there are scope, audience and challenge").into(),
                    ));
                }
            }
        }
        scope::validate(&requirements.scopes)?;
        requirements.challenge = challenge.unwrap_or_default();
        Ok(requirements)
    }
}
