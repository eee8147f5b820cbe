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

/// How many Events may wait to be written. More are dropped: the log has them, and conditions are what users rely on.
const QUEUE_CAPACITY: usize = 4096;
/// How many Events are written at a time.
const MAX_CONCURRENT_WRITES: usize = 4;
/// The API server's limit for an Event's note, in bytes.
const MAX_NOTE_BYTES: usize = 1024;

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

/// Queues Events, which the task of [`channel`] writes.
#[derive(Clone)]
pub(crate) struct EventRecorder {
    queue: mpsc::Sender<ApiEvent>,
    instance: String,
}

/// The recorder, and the task that writes what it queues.
pub(crate) fn channel(client: Client, instance: String) -> (EventRecorder, impl Future<Output = ()>) {
    let (queue, waiting) = mpsc::channel::<ApiEvent>(QUEUE_CAPACITY);
    let write = futures::StreamExt::for_each_concurrent(
        futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting))),
        MAX_CONCURRENT_WRITES,
        move |event| {
            let api = Api::<ApiEvent>::namespaced(client.clone(), &event.namespace().unwrap_or_default());
            async move {
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    warn!(error = message(&error), "an Event was not written");
                }
            }
        },
    );
    (EventRecorder { queue, instance }, write)
}

impl EventRecorder {
    /// Queues an Event about an object.
    // kube's Recorder would merge a later Event into an earlier one of the same reason and preserve the earlier text,
    // which names another version.
    pub(crate) fn publish(&self, about: &impl Resource<DynamicType = ()>, event: NewEvent) {
        let Reason { code, message: mut note } = event.reason;
        if note.len() > MAX_NOTE_BYTES {
            let end = (0..=MAX_NOTE_BYTES - 3).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
            note.truncate(end);
            note.push('…');
        }
        let now = Timestamp::now();
        let event = ApiEvent {
            metadata: ObjectMeta {
                // As client-go names them.
                name: Some(format!("{}.{:x}", about.name_any(), now.as_nanosecond())),
                // As client-go does for objects that have none.
                namespace: Some(about.namespace().unwrap_or_else(|| "default".to_owned())),
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
