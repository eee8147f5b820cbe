//! The table of HTTP routes. Routing, the 404 response, the rights of callers and the OpenAPI document are made from it.

use http::Method;

/// A path that the server routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    ForwardAuth,
    /// Forward-auth with the requirements in the path.
    Require,
    Verify,
    VerifyBatch,
    Introspection,
    TokenReview,
    OpenApi,
}

/// A row of the table.
struct Row {
    path: &'static str,
    /// Whether every path below is routed, too.
    subtree: bool,
    methods: Methods,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Methods {
    Any,
    GetOrHead,
    Post,
}

impl Route {
    /// Every route, in the order of declaration: `/auth` first, because it gets nearly all requests.
    pub(super) const ALL: [Self; 7] = [
        Self::ForwardAuth,
        Self::Require,
        Self::Verify,
        Self::VerifyBatch,
        Self::Introspection,
        Self::TokenReview,
        Self::OpenApi,
    ];

    fn row(self) -> Row {
        let row = |path, subtree, methods| Row { path, subtree, methods };
        match self {
            Self::ForwardAuth => row("/auth", true, Methods::Any),
            Self::Require => row("/require", true, Methods::Any),
            Self::Verify => row("/v1/verify", false, Methods::Post),
            Self::VerifyBatch => row("/v1/verify:batch", false, Methods::Post),
            Self::Introspection => row("/oauth2/introspect", false, Methods::Post),
            Self::TokenReview => row("/tokenreview", false, Methods::Post),
            Self::OpenApi => row("/openapi.json", false, Methods::GetOrHead),
        }
    }

    /// The route of a request's path. A router would cost more than a check does.
    pub(super) fn parse(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| {
            let row = route.row();
            path.strip_prefix(row.path)
                .is_some_and(|rest| rest.is_empty() || (row.subtree && rest.starts_with('/')))
        })
    }

    pub(super) fn path(self) -> &'static str {
        self.row().path
    }

    pub(super) fn allows(self, method: &Method) -> bool {
        match self.row().methods {
            Methods::Any => true,
            Methods::GetOrHead => matches!(*method, Method::GET | Method::HEAD),
            Methods::Post => method == Method::POST,
        }
    }

    /// The non-resource URL to which the API server must let a caller `post`, where the route has authenticated callers.
    /// A batch reveals no more than single checks do, so it needs no right of its own.
    pub(super) fn non_resource_url(self) -> &'static str {
        match self {
            Self::VerifyBatch => Self::Verify.path(),
            route => route.path(),
        }
    }
}

/// The body of a 404 response.
pub(super) fn not_found() -> String {
    let endpoints = Route::ALL.into_iter().filter(|route| *route != Route::OpenApi);
    let paths: Vec<_> = endpoints.map(Route::path).collect();
    format!("not found; endpoints: {}; GET {} describes them\n", paths.join(", "), Route::OpenApi.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_listed_once_and_found_by_its_path() {
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index, "{route:?}");
            assert_eq!(Route::parse(route.path()), Some(route));
            assert_eq!(Route::parse(&route.path()[1..]), None, "{route:?} without the slash");
            assert_eq!(Route::parse(&format!("{}x", route.path())), None, "{route:?}");
            assert!(not_found().contains(route.path()), "{route:?}");
        }
    }

    #[test]
    fn forward_auth_alone_has_subtrees_and_takes_any_method() {
        for route in Route::ALL {
            let is_forward_auth = matches!(route, Route::ForwardAuth | Route::Require);
            for below in ["/", "/x", "//", "/x/../y"] {
                let path = format!("{}{below}", route.path());
                assert_eq!(Route::parse(&path), is_forward_auth.then_some(route), "{path}");
            }
            assert_eq!(route.allows(&Method::DELETE), is_forward_auth, "{route:?}");
        }
    }

    #[test]
    fn callers_need_the_right_to_the_path_itself_or_to_single_checks() {
        assert_eq!(Route::Introspection.non_resource_url(), "/oauth2/introspect");
        assert_eq!(Route::TokenReview.non_resource_url(), "/tokenreview");
        assert_eq!(Route::Verify.non_resource_url(), "/v1/verify");
        assert_eq!(Route::VerifyBatch.non_resource_url(), "/v1/verify");
    }
}
