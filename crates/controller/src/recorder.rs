//! Records Kubernetes Events in the background: one that can't be written delays no token.

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc;
use tracing::warn;

use tokenward_core::crd::Reason;
use tokenward_core::crd::labels::REPORTING_CONTROLLER;
use tokenward_core::lifecycle::Transition;
use tokenward_runtime::cluster::error::message;

/// Events that may wait. More are dropped: the log has them, and conditions are what users rely on.
const QUEUE_CAPACITY: usize = 4096;
/// Events that are written at once.
const CONCURRENCY: usize = 4;
/// The API's limit for a note, in bytes.
const MAX_NOTE: usize = 1024;

/// An Event to record.
pub(crate) struct NewEvent {
    pub(crate) reason: Reason,
    /// Whether its type is Warning, and not Normal.
    pub(crate) warning: bool,
}

impl From<Transition> for NewEvent {
    fn from(transition: Transition) -> Self {
        let (code, warning) = (transition.kind.event_reason(), transition.kind.is_warning());
        Self { reason: Reason::new(code, transition.message), warning }
    }
}

/// Queues Events.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<ApiEvent>,
    instance: String,
}

/// The recorder, and the task that writes what it queues.
pub(crate) fn channel(client: Client, instance: String) -> (Sender, impl Future<Output = ()>) {
    let (queue, waiting) = mpsc::channel::<ApiEvent>(QUEUE_CAPACITY);
    let write = futures::StreamExt::for_each_concurrent(
        futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting))),
        CONCURRENCY,
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
    /// Queues an Event about an object.
    // kube's Recorder would merge a later Event into an earlier one of the same reason and keep the earlier text, which
    // names another version.
    pub(crate) fn send(&self, about: &impl Resource<DynamicType = ()>, event: NewEvent) {
        let Reason { code, message: mut note } = event.reason;
        if note.len() > MAX_NOTE {
            let end = (0..=MAX_NOTE - 3).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
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
            action: Some(code.to_owned()),
            reason: Some(code.to_owned()),
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
