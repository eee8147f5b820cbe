//! Every label, annotation, finalizer and other qualified name that tokenward reads or writes.

/// The API group of both kinds; also the domain of every label and annotation that tokenward defines.
pub const GROUP: &str = "tokenward.dev";

/// The label by which the controller watches the Secrets that it wrote.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] on every Secret that the controller writes.
pub const MANAGED_BY_VALUE: &str = "tokenward";

/// The label of the Secrets that are tokenward's own: the pepper, and the certificate of the admission webhook.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// The value of [`PART_OF`].
pub const PART_OF_VALUE: &str = "tokenward";

// On the Secret of an ApiToken.

/// Label: the name of the ApiToken whose token the Secret contains. With `creationPolicy: Merge`, its owner sets it, and so
/// lets that ApiToken write into it.
pub const TOKEN_LABEL: &str = "tokenward.dev/token";
/// Label: `true` on the Secret of a revoked token, absent otherwise.
pub const REVOKED_LABEL: &str = "tokenward.dev/revoked";
/// Annotation: the number of the version that the Secret contains.
pub const VERSION_ANNOTATION: &str = "tokenward.dev/version";
/// Annotation: the key id of that version. It is public and may be logged.
pub const KEY_ID_ANNOTATION: &str = "tokenward.dev/key-id";
/// Annotation: when that version was issued, in RFC 3339.
pub const ISSUED_AT_ANNOTATION: &str = "tokenward.dev/issued-at";
/// Annotation: `status.tokenId` of the ApiToken.
pub const TOKEN_ID_ANNOTATION: &str = "tokenward.dev/token-id";
/// Annotation: the uid of the ApiToken, so that a recreated one of the same name is not mistaken for it.
pub const TOKEN_UID_ANNOTATION: &str = "tokenward.dev/token-uid";
/// Annotation: the namespace of the ApiToken, so that a Secret that was restored elsewhere is recognised.
pub const NAMESPACE_ANNOTATION: &str = "tokenward.dev/namespace";
/// Annotation: the scopes that the version was issued with, separated by spaces.
pub const SCOPES_ANNOTATION: &str = "tokenward.dev/scopes";
/// Annotation: a MAC over the annotations above, keyed with the pepper ([`crate::token::seal`]).
pub const SEAL_ANNOTATION: &str = "tokenward.dev/seal";
/// Annotation: which labels, annotations and constants came from `secret.template`, as JSON, so that a key removed from the
/// template is also removed from the Secret.
pub const TEMPLATE_ANNOTATION: &str = "tokenward.dev/template";

// On the signing Secret of a TokenWebhook.

/// Label: the name of the TokenWebhook whose signing key the Secret contains.
pub const WEBHOOK_LABEL: &str = "tokenward.dev/webhook";
/// Annotation: the value of `signing.rotation.trigger` for which the current key was generated.
pub const SIGNING_TRIGGER_ANNOTATION: &str = "tokenward.dev/signing-trigger";
/// Annotation: until when the previous key signs too, in RFC 3339.
pub const PREVIOUS_UNTIL_ANNOTATION: &str = "tokenward.dev/previous-until";

// On the ConfigMaps of the ledger.

/// Label: `true` on each of them, whatever its name.
pub const LEDGER_LABEL: &str = "tokenward.dev/ledger";

// On the pepper Secret.

/// Annotation: warns people who find the pepper Secret not to delete or edit it.
pub const WARNING_ANNOTATION: &str = "tokenward.dev/warning";

// Set by users on a TokenWebhook. A new value triggers the action once.

/// Annotation: sends a ping to the endpoint.
pub const PING_ANNOTATION: &str = "tokenward.dev/ping";
/// Annotation: sends the dead letters again.
pub const REPLAY_ANNOTATION: &str = "tokenward.dev/replay";

/// The finalizer of an ApiToken whose deletion a TokenWebhook subscribes to.
pub const WEBHOOKS_FINALIZER: &str = "tokenward.dev/webhooks";

/// The finalizer of a lock that revokes: it stays until every token that it matches is revoked by its own record.
pub const LOCK_FINALIZER: &str = "tokenward.dev/lock";

/// `reportingController` of the Kubernetes Events that the controller writes.
pub const REPORTING_CONTROLLER: &str = "tokenward.dev/controller";

/// The virtual resource on which the verb `grant` allows to give a token scopes; resource names are scopes.
pub const SCOPES_RESOURCE: &str = "scopes";

// Keys of `status.user.extra` in the response to a TokenReview.

/// The scopes of the reviewed token.
pub const SCOPES_EXTRA: &str = "tokenward.dev/scopes";
/// The key id of the reviewed token.
pub const KEY_ID_EXTRA: &str = "tokenward.dev/key-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names_are_in_the_group() {
        for name in [
            TOKEN_LABEL,
            REVOKED_LABEL,
            VERSION_ANNOTATION,
            KEY_ID_ANNOTATION,
            ISSUED_AT_ANNOTATION,
            SCOPES_ANNOTATION,
            TOKEN_ID_ANNOTATION,
            TOKEN_UID_ANNOTATION,
            NAMESPACE_ANNOTATION,
            SEAL_ANNOTATION,
            TEMPLATE_ANNOTATION,
            WEBHOOK_LABEL,
            SIGNING_TRIGGER_ANNOTATION,
            PREVIOUS_UNTIL_ANNOTATION,
            LEDGER_LABEL,
            WARNING_ANNOTATION,
            PING_ANNOTATION,
            REPLAY_ANNOTATION,
            WEBHOOKS_FINALIZER,
            LOCK_FINALIZER,
            REPORTING_CONTROLLER,
            SCOPES_EXTRA,
            KEY_ID_EXTRA,
        ] {
            assert_eq!(name.split_once('/').map(|(domain, _)| domain), Some(GROUP), "{name}");
        }
    }
}
