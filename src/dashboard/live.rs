//! What an open dashboard is told: server-sent events.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use axum_core::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde::Serialize;

use crate::model::id::NodeId;
use crate::model::vitals::Vitals;
use crate::node::Node;
use crate::peers::checkup::Finding;

/// How many rolls, of one a second, come before the page has to come again: then the app's auth looks at it anew.
const ROLLS: u32 = 60;

/// Who tells.
#[derive(Debug, Serialize)]
struct HelloEvent<'a> {
    node: NodeId,
    namespace: &'a str,
    version: &'static str,
    actions: bool,
}

#[derive(Debug, Serialize)]
struct VitalsEvent<'a> {
    #[serde(flatten)]
    vitals: &'a Vitals,
    took_micros: Option<u64>,
}

/// Ends with the node, or after a minute.
pub(super) fn live(node: &Arc<Node>, actions: bool) -> Body {
    let hello = event(
        "hello",
        &HelloEvent {
            node: node.ground.node,
            namespace: node.config.namespace.as_str(),
            version: env!("CARGO_PKG_VERSION"),
            actions,
        },
    );
    let findings = node.peers.checkup().look();
    let findings = findings.scan(0, |rolls, finding| {
        *rolls += u32::from(matches!(finding, Finding::Roll(_)));
        ready((*rolls <= ROLLS).then(|| told(&finding)))
    });
    let events = stream::once(ready(hello)).chain(findings);
    Body::from_stream(events.map(Ok::<_, Infallible>))
}

fn told(finding: &Finding) -> Bytes {
    match finding {
        Finding::Roll(nodes) => event("roll", &**nodes),
        Finding::Vitals(vitals, took) => event(
            "vitals",
            &VitalsEvent {
                vitals,
                took_micros: took.map(|took| took.as_micros() as u64),
            },
        ),
    }
}

/// JSON has no line breaks but within strings, where they are escaped.
fn event(name: &str, data: &(impl Serialize + ?Sized)) -> Bytes {
    let data = serde_json::to_string(data).expect("it is plain data");
    format!("event: {name}\ndata: {data}\n\n").into()
}
