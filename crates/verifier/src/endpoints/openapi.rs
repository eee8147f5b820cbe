//! The OpenAPI 3.1 document of the HTTP endpoints, from the table of routes and the types that the handlers use.
//!
//! Served at `/openapi.json`, printed by `tokenward openapi`, and stored as `openapi.json` in the repository.

use utoipa::ToSchema;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ComponentsBuilder, Content, HeaderBuilder, InfoBuilder, LicenseBuilder, Object, ObjectBuilder,
    OpenApiBuilder, PathItem, Ref, RefOr, Required, ResponseBuilder, Schema,
};

use super::authenticated::Handler;
use super::introspection::Introspection;
use super::json::MEDIA_TYPE;
use super::routes::Route;
use super::schema::Scope;
use super::token_review::TokenReviews;
use super::verify::{Verify, VerifyBatch, VerifyError};
use tokenward_core::token::scope::MAX_SCOPES;

/// The document, as indented JSON.
pub fn json() -> String {
    let mut schemas = Schemas::default();
    let mut paths = PathsBuilder::new();
    for route in Route::ALL {
        if let Some((method, operation)) = operation(route, &mut schemas) {
            let template = if route == Route::Require { "/{requirements}/{path}" } else { "" };
            paths = paths.path(format!("{}{template}", route.path()), PathItem::new(method, operation));
        }
    }
    let components = security_schemes(ComponentsBuilder::new().schemas_from_iter(schemas.0));
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("tokenward verifier")
        .description(Some("Is this presented token valid, and for these scopes?"))
        .license(Some(license))
        .version(env!("CARGO_PKG_VERSION"));
    let document =
        OpenApiBuilder::new().info(info.build()).paths(paths).components(Some(components.build())).build();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The operation of a route. Of those with any method, the one that most gateways use. `None`: this document itself.
fn operation(route: Route, schemas: &mut Schemas) -> Option<(HttpMethod, Operation)> {
    let operation = match route {
        Route::ForwardAuth => return Some((HttpMethod::Get, forward_auth(schemas))),
        Route::Require => return Some((HttpMethod::Get, require(schemas))),
        Route::Verify => authenticated::<Verify>(
            schemas,
            Text {
                id: "verify",
                tag: "services",
                summary: "Checks a token, and says why it is not valid.",
                description: None,
                success: "Whether the token is valid.",
            },
        ),
        Route::VerifyBatch => authenticated::<VerifyBatch>(
            schemas,
            Text {
                id: "verify_batch",
                tag: "services",
                summary: "Checks up to 100 tokens.",
                description: None,
                success: "The results, in the order of the checks.",
            },
        ),
        Route::Introspection => authenticated::<Introspection>(
            schemas,
            Text {
                id: "introspect",
                tag: "services",
                summary: "OAuth 2.0 Token Introspection, RFC 7662.",
                description: None,
                success: "The token's metadata; only `active: false` if it is not valid.",
            },
        ),
        Route::TokenReview => authenticated::<TokenReviews>(
            schemas,
            Text {
                id: "token_review",
                tag: "kubernetes",
                summary: "Kubernetes TokenReview, for kube-apiserver's `--authentication-token-webhook-config-file`.",
                description: Some(
                    "<https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>",
                ),
                success: "The review with its status.",
            },
        ),
        Route::OpenApi => return None,
    };
    Some((HttpMethod::Post, operation))
}

/// The schemas that operations refer to, and those that these refer to in turn.
#[derive(Default)]
struct Schemas(Vec<(String, RefOr<Schema>)>);

impl Schemas {
    fn reference<T: ToSchema>(&mut self) -> Ref {
        let name = T::name();
        T::schemas(&mut self.0);
        self.0.push((name.to_string(), T::schema()));
        Ref::from_schema_name(name)
    }

    fn content<T: ToSchema>(&mut self) -> Content {
        Content::new(Some(self.reference::<T>()))
    }

    fn response<T: ToSchema>(&mut self, description: &str) -> ResponseBuilder {
        ResponseBuilder::new().description(description).content(MEDIA_TYPE, self.content::<T>())
    }
}

fn forward_auth(schemas: &mut Schemas) -> Operation {
    let scopes = ArrayBuilder::new().items(schemas.reference::<Scope>()).max_items(Some(MAX_SCOPES));
    let operation = OperationBuilder::new()
        .summary(Some("Forward-auth: may this request pass?"))
        .description(Some(
            "For gateways: nginx `auth_request`, Traefik ForwardAuth, Caddy `forward_auth`, HAProxy, Envoy. Any method is \
             allowed. Paths below `/auth/` are a client's own, and its query there requires nothing.",
        ))
        .operation_id(Some("auth"))
        .parameter(
            parameter("scope", ParameterIn::Query, "A scope that is required. If repeated, all of them are.")
                .required(Required::False)
                .schema(Some(scopes)),
        )
        .parameter(
            parameter("audience", ParameterIn::Query, "The service for which the token is presented.")
                .required(Required::False)
                .schema(Some(ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)))),
        )
        .parameter(
            parameter("challenge", ParameterIn::Query, "The scheme that a 401 asks for.")
                .required(Required::False)
                .schema(Some(
                    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["Bearer", "Basic"])),
                )),
        );
    for_gateways(operation, schemas)
}

fn require(schemas: &mut Schemas) -> Operation {
    let text = || Some(Object::with_type(Type::String));
    let operation = OperationBuilder::new()
        .summary(Some("Forward-auth for gateways that can only prefix the client's path."))
        .description(Some(
            "Envoy Gateway, Istio and the Gateway API's external authorization. Any method is allowed, and any path and \
             query of the client.",
        ))
        .operation_id(Some("require"))
        .parameter(
            parameter(
                "requirements",
                ParameterIn::Path,
                "What `/auth` takes as its query, as one segment: `scope=orders:read&audience=orders`.",
            )
            .schema(Some(ObjectBuilder::new().schema_type(Type::String).pattern(Some(REQUIREMENTS)))),
        )
        .parameter(parameter("path", ParameterIn::Path, "The client's path, of any depth.").schema(text()));
    for_gateways(operation, schemas)
}

/// A parameter, which is required if it is in the path.
fn parameter(name: &str, location: ParameterIn, description: &str) -> ParameterBuilder {
    ParameterBuilder::new().name(name).parameter_in(location).description(Some(description))
}

/// The responses and credentials of the public endpoints.
fn for_gateways(operation: OperationBuilder, schemas: &mut Schemas) -> Operation {
    let identity = |description: &str| {
        HeaderBuilder::new().schema(Object::with_type(Type::String)).description(Some(description)).build()
    };
    let mut operation = operation.tag("gateways").response(
        "200",
        ResponseBuilder::new()
            .description("Valid, with all the scopes.")
            .header("X-Tokenward-Id", identity("`status.tokenId` of the ApiToken"))
            .header("X-Tokenward-Subject", identity("The ApiToken, as `namespace/name`"))
            .header("X-Tokenward-Scopes", identity("Its scopes, separated by spaces")),
    );
    for (status, description) in [
        ("400", "The request is malformed."),
        ("401", "No token, or not a valid one."),
        ("403", "Valid, but without a scope, or not from this address."),
        ("503", "This replica does not know the tokens yet, or its copy is too old."),
    ] {
        operation = operation.response(status, schemas.response::<VerifyError>(description));
    }
    operation.security(requirement("presented")).security(requirement("presented_as_key")).build()
}

/// The usual forms of the segment with the requirements; the server admits more scopes, and repetitions.
const REQUIREMENTS: &str = "^(scope=[a-z]+(:[a-z]+){1,2}(&audience=[a-z]+)?|audience=[a-z]+)$";

/// What an operation's description says apart from its types.
struct Text {
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    description: Option<&'static str>,
    /// Describes the response with status 200.
    success: &'static str,
}

/// An endpoint behind [`Authenticated`](super::authenticated::Authenticated). All of these fail alike, each in the form
/// of its own protocol.
fn authenticated<H: Handler>(schemas: &mut Schemas, text: Text) -> Operation {
    let body = RequestBodyBuilder::new()
        .content(H::MEDIA_TYPE, schemas.content::<H::Request>())
        .required(Some(Required::True));
    let mut operation = OperationBuilder::new()
        .tag(text.tag)
        .summary(Some(text.summary))
        .description(text.description)
        .operation_id(Some(text.id))
        .request_body(Some(body.build()))
        .response("200", schemas.response::<H::Response>(text.success));
    for (status, description, header) in [
        ("400", "The request is malformed.", None),
        ("401", "The caller is not authenticated.", Some("WWW-Authenticate")),
        ("403", "The caller is not authorized.", None),
        ("408", "The body was not complete in time.", None),
        ("413", "The body is too large.", None),
        ("415", "The body is of another media type.", None),
        ("503", "This replica can't check the token, or the caller, now.", Some("Retry-After")),
    ] {
        let mut response = schemas.response::<H::Error>(description);
        if let Some(name) = header {
            let value = HeaderBuilder::new().schema(Object::with_type(Type::String));
            response = response.header(name, value.build());
        }
        operation = operation.response(status, response);
    }
    operation.security(requirement("bearer")).security(requirement("basic")).build()
}

fn requirement(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new::<_, [&str; 0], &str>(scheme, [])
}

fn security_schemes(components: ComponentsBuilder) -> ComponentsBuilder {
    let http = |scheme, description: &str| {
        SecurityScheme::Http(HttpBuilder::new().scheme(scheme).description(Some(description)).build())
    };
    let api_key = ApiKeyValue::with_description("X-API-Key", "The token that is checked.");
    components
        .security_scheme(
            "bearer",
            http(
                HttpAuthScheme::Bearer,
                "The caller's, of the audience tokenward: a ServiceAccount token, or a tokenward token with the scope \
                 tokens:verify.",
            ),
        )
        .security_scheme(
            "basic",
            http(HttpAuthScheme::Basic, "The same as the password; the user name is ignored."),
        )
        .security_scheme("presented", http(HttpAuthScheme::Bearer, "The token that is checked."))
        .security_scheme("presented_as_key", SecurityScheme::ApiKey(ApiKey::Header(api_key)))
}
