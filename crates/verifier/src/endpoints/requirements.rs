//! What a route needs of a token: scopes and an audience, as a gateway's operator names them.

use std::borrow::Cow;

use super::refusal::Refusal;
use tokenward_core::token::scope;

/// What the route needs, as the gateway's operator says it.
#[derive(Debug, Default)]
pub(super) struct Requirements<'q> {
    pub(super) scopes: Vec<Cow<'q, str>>,
    pub(super) audience: Option<Cow<'q, str>>,
}

/// Reads what the route needs. `strict`: the query is all ours, so an unknown parameter is a mistake, and one that
/// would leave a route open.
pub(super) fn from_query(query: &str, strict: bool) -> Result<Requirements<'_>, Refusal> {
    if query.is_empty() {
        return Ok(Requirements::default());
    }
    from_parameters(form_urlencoded::parse(query.as_bytes()), strict)
}

/// The same from parameters that were decoded already.
pub(super) fn from_parameters<'q>(
    parameters: impl IntoIterator<Item = (Cow<'q, str>, Cow<'q, str>)>,
    strict: bool,
) -> Result<Requirements<'q>, Refusal> {
    let mut needs = Requirements::default();
    for (name, value) in parameters {
        match &*name {
            "scope" => {
                let before = needs.scopes.len();
                needs.scopes.extend(value.split_ascii_whitespace().map(|scope| Cow::Owned(scope.to_owned())));
                if needs.scopes.len() == before {
                    return Err(Refusal::Malformed("scope is empty: leave it out, or name one".into()));
                }
            }
            "audience" if needs.audience.is_some() => {
                return Err(Refusal::Malformed("more than one audience".into()));
            }
            "audience" => needs.audience = Some(value),
            _ if strict => {
                let name: String = name.chars().take(64).collect();
                return Err(Refusal::Malformed(
                    format!("unknown parameter {name:?}: there are scope and audience").into(),
                ));
            }
            _ => {}
        }
    }
    scope::validate(&needs.scopes)?;
    Ok(needs)
}
