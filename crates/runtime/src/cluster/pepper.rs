//! Watches the Secret of the peppers by its name. It is the only Secret that the verifier may read.
//!
//! What to do if it is deleted or damaged later differs by role.

use std::sync::Arc;

use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{error, info};
use zeroize::Zeroizing;

use tokenward_core::token::{PepperError, Peppers};

/// The name of the pepper's Secret, in the operator's namespace.
pub const PEPPER_SECRET: &str = "tokenward-pepper";

/// The state of the pepper's Secret.
#[derive(Clone, Debug, Default)]
pub enum PepperState {
    /// It has not been read yet.
    #[default]
    Unknown,
    /// There is no such Secret.
    Missing,
    /// Its data can't be used.
    Damaged(PepperError),
    /// It was read, and can be used.
    Present(Arc<Peppers>),
}

/// A receiver of the pepper's state, and the task that feeds it.
pub fn follow(
    client: Client,
    namespace: &str,
) -> (watch::Receiver<PepperState>, impl Future<Output = ()> + use<>) {
    let (sender, receiver) = watch::channel(PepperState::Unknown);
    let namespace = namespace.to_owned();
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    let follow = super::watch::follow(secrets, PEPPER_SECRET, "the pepper").for_each(move |secret| {
        let state = secret.map_or(PepperState::Missing, |secret| read(secret).into());
        match &state {
            PepperState::Missing => info!(
                "waiting for Secret {namespace}/{PEPPER_SECRET}: the controller creates it on its very first start; if it was \
                     deleted, restore it from a backup"
            ),
            PepperState::Damaged(damage) => {
                error!("Secret {namespace}/{PEPPER_SECRET} can't be used: {damage}; restore it from a backup")
            }
            PepperState::Present(_) | PepperState::Unknown => {}
        }
        sender.send_replace(state);
        future::ready(())
    });
    (receiver, follow)
}

/// Reads the pepper's Secret, and wipes it.
pub fn read(secret: Secret) -> Result<Peppers, PepperError> {
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, Zeroizing::new(value.0)));
    Peppers::from_data(&data.collect())
}

impl From<Result<Peppers, PepperError>> for PepperState {
    fn from(read: Result<Peppers, PepperError>) -> Self {
        match read {
            Ok(peppers) => Self::Present(Arc::new(peppers)),
            Err(damage) => Self::Damaged(damage),
        }
    }
}
