//! Kubernetes Events, told beside the work: an Event that can't be written holds up no token.

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc;
use tracing::warn;

use tokenward_core::crd::labels::REPORTING_CONTROLLER;
use tokenward_core::lifecycle::Event;
use tokenward_runtime::cluster::error::message;

/// How many Events may wait. What comes on top is dropped: the log has it, and conditions are the contract.
const WAITING: usize = 4096;
/// How many are written at once.
const AT_ONCE: usize = 4;
/// The API's bound of a note, in bytes.
const NOTE: usize = 1024;

/// What is told.
pub(crate) struct NewEvent {
    /// One CamelCase word.
    pub(crate) reason: &'static str,
    /// Whether it asks for attention.
    pub(crate) warning: bool,
    /// A sentence for people. Never holds a secret.
    pub(crate) message: String,
}

impl From<Event> for NewEvent {
    fn from(event: Event) -> Self {
        Self { reason: event.kind.as_str(), warning: event.kind.is_warning(), message: event.message }
    }
}

/// Where Events are handed in.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<ApiEvent>,
    instance: String,
}

/// Prepares the queue, and the task that empties it.
pub(crate) fn channel(client: Client, instance: String) -> (Sender, impl Future<Output = ()>) {
    let (queue, waiting) = mpsc::channel::<ApiEvent>(WAITING);
    let write = futures::StreamExt::for_each_concurrent(
        futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting))),
        AT_ONCE,
        move |event| {
            let api = Api::<ApiEvent>::namespaced(client.clone(), &event.namespace().unwrap_or_default());
            async move {
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    warn!(error = message(&error), "an Event was not written");
                }
            }
        },
    );
    (Sender { queue, instance }, write)
}

impl Sender {
    /// Hands in an Event about an object.
    // kube's Recorder would fold a later Event into an earlier one of the same reason and keep the earlier text,
    // which names another version.
    pub(crate) fn send(&self, about: &impl Resource<DynamicType = ()>, event: NewEvent) {
        let mut note = event.message;
        if note.len() > NOTE {
            let end = (0..=NOTE - 3).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
            note.truncate(end);
            note.push('…');
        }
        let now = Timestamp::now();
        let event = ApiEvent {
            metadata: ObjectMeta {
                // As client-go names them.
                name: Some(format!("{}.{:x}", about.name_any(), now.as_nanosecond())),
                namespace: about.namespace(),
                ..Default::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(REPORTING_CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(event.reason.to_owned()),
            reason: Some(event.reason.to_owned()),
            regarding: Some(about.object_ref(&())),
            note: Some(note),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Default::default()
        };
        if self.queue.try_send(event).is_err() {
            warn!("an Event was dropped: too many are waiting");
        }
    }
}
