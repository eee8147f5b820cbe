//! Classifies the API server's errors.

use kube::Error;
use kube::core::Status;
use kube::runtime::watcher;

/// Classes of errors, by what to do about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The object has changed since it was read, or exists already: read it again.
    Conflict,
    /// The object or its namespace is gone or being deleted: there is nothing to do.
    Drop,
    /// A person has to act: a right is missing, a quota is used up.
    Forbidden,
    /// A person has to act: the object is not acceptable as it is.
    Invalid,
    /// It may work later.
    Retry,
}

/// The class of an error. What the API server did not send itself may work later.
pub fn classify(error: &Error) -> ErrorClass {
    match error {
        Error::Api(status) => of_status(status),
        // The connection, TLS, a proxy, a truncated response.
        _ => ErrorClass::Retry,
    }
}

fn of_status(status: &Status) -> ErrorClass {
    match status.code {
        409 => ErrorClass::Conflict,
        404 => ErrorClass::Drop,
        403 if caused_by(status, "NamespaceTerminating") => ErrorClass::Drop,
        403 => ErrorClass::Forbidden,
        400 | 413 | 422 => ErrorClass::Invalid,
        // 429 and 5xx are temporary by definition, and 401 is: the token of a service account is renewed.
        _ => ErrorClass::Retry,
    }
}

/// Whether the API server makes nothing new in the namespace, because it is being deleted.
pub fn is_namespace_terminating(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 403 && caused_by(status, "NamespaceTerminating"))
}

fn caused_by(status: &Status, cause: &str) -> bool {
    status.details.as_ref().is_some_and(|details| details.causes.iter().any(|c| c.reason == cause))
}

/// Whether there is no such object.
pub fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Whether there is such an object already.
pub fn is_already_exists(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// The API server's message, without what the client adds.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The API server's message on why a watch failed.
pub fn watch_message(error: &watcher::Error) -> String {
    use watcher::Error;
    match error {
        Error::InitialListFailed(source) | Error::WatchStartFailed(source) | Error::WatchFailed(source) => {
            message(source)
        }
        Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> Error {
        Error::Api(Box::new(serde_json::from_str(json).expect("a Status")))
    }

    #[test]
    fn every_status_has_its_class() {
        for (json, expected) in [
            (r#"{"code":409,"reason":"Conflict"}"#, ErrorClass::Conflict),
            (r#"{"code":409,"reason":"AlreadyExists"}"#, ErrorClass::Conflict),
            (r#"{"code":404}"#, ErrorClass::Drop),
            (r#"{"code":403,"reason":"Forbidden"}"#, ErrorClass::Forbidden),
            (r#"{"code":403,"details":{"causes":[{"reason":"NamespaceTerminating"}]}}"#, ErrorClass::Drop),
            (r#"{"code":422}"#, ErrorClass::Invalid),
            (r#"{"code":429,"details":{"retryAfterSeconds":1}}"#, ErrorClass::Retry),
            (r#"{"code":500}"#, ErrorClass::Retry),
            (r#"{"code":401}"#, ErrorClass::Retry),
        ] {
            assert_eq!(classify(&error(json)), expected, "{json}");
        }
        let terminating = r#"{"code":403,"details":{"causes":[{"reason":"NamespaceTerminating"}]}}"#;
        assert!(is_namespace_terminating(&error(terminating)));
        assert!(!is_namespace_terminating(&error(r#"{"code":403,"reason":"Forbidden"}"#)));
        assert!(is_already_exists(&error(r#"{"code":409,"reason":"AlreadyExists"}"#)));
        assert!(!is_already_exists(&error(r#"{"code":409,"reason":"Conflict"}"#)));
    }
}
