//! Numbers that one node sends to one user while things break, and what became of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use axum_cluster::{Broadcaster, Delivery, Gap, SendError};
use futures::{FutureExt, Stream, StreamExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::Event;
use super::figures::Figures;
use super::{soon, until};

/// Between two sends: fast enough to hit every moment, slow enough for a reader that comes later.
const PACE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub struct Traffic {
    taken: Arc<AtomicU32>,
    stop: CancellationToken,
    sending: JoinHandle<Vec<Sent>>,
}

/// One number and what its sender was told.
#[derive(Debug, Clone)]
pub struct Sent {
    number: u32,
    begun: SystemTime,
    ended: SystemTime,
    told: Told,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Sent,
    CertainlyNot,
    Perhaps,
}

impl Traffic {
    pub fn start(broadcaster: &Broadcaster, user: &str) -> Self {
        Self::paced(broadcaster, user, PACE)
    }

    /// With so long between two sends.
    pub fn paced(broadcaster: &Broadcaster, user: &str, pace: Duration) -> Self {
        let (taken, stop) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let (audience, count, stopped) = (broadcaster.to_user(user), taken.clone(), stop.clone());
        let sending = tokio::spawn(async move {
            let mut sent = Vec::new();
            for number in 0.. {
                if stopped.is_cancelled() {
                    break;
                }
                let begun = SystemTime::now();
                let told = audience.clone().send(number.to_string()).await;
                let is_taken = told.as_ref().is_ok_and(|told| told.nodes() == Some(1));
                count.fetch_add(u32::from(is_taken), SeqCst);
                sent.push(Sent::told(number, begun, &told));
                tokio::time::sleep(pace).await;
            }
            sent
        });
        Self {
            taken,
            stop,
            sending,
        }
    }

    /// Waits until so many more were taken by the other node.
    pub async fn passes(&self, count: u32) {
        let goal = self.taken.load(SeqCst) + count;
        until("traffic passes", async || self.taken.load(SeqCst) >= goal).await;
    }

    /// Ends it and judges what was heard, as [`losses`](Self::losses) does: one gap for each of these faults, or none.
    pub async fn judge(
        self,
        heard: impl AsyncFnOnce() -> Vec<Event>,
        gaps: impl Stream<Item = Gap> + Unpin,
        mut faults: Vec<Figures>,
    ) {
        let losses = self.losses(heard, gaps).await;
        assert!(
            losses.is_empty() || losses.len() == faults.len(),
            "{losses:?}"
        );
        for (fault, (_, lost)) in faults.iter_mut().zip(losses) {
            fault.lost_inside += lost;
        }
        faults
            .iter_mut()
            .for_each(|fault| fault.lost_outside = Some(0));
    }

    /// Ends it and judges what was heard, as [`losses`] does.
    pub async fn losses(
        self,
        heard: impl AsyncFnOnce() -> Vec<Event>,
        gaps: impl Stream<Item = Gap> + Unpin,
    ) -> Vec<(Gap, usize)> {
        self.stop.cancel();
        let sent = self.sending.await.expect("it does not panic");
        losses(sent, &heard().await, gaps).await
    }
}

impl Sent {
    /// Its sender is told just now.
    pub fn told(number: u32, begun: SystemTime, told: &Result<Delivery, SendError>) -> Self {
        Self {
            number,
            begun,
            ended: SystemTime::now(),
            told: match told {
                Ok(_) => Told::Sent,
                Err(error) if error.maybe_sent() => Told::Perhaps,
                Err(_) => Told::CertainlyNot,
            },
        }
    }
}

/// Judges what was heard of this: nothing twice, nothing out of order, nothing that was certainly not sent, and nothing
/// lost outside the gaps that the hearing node announces, some of them only after others have told it. These, and how
/// many were lost in each.
pub async fn losses(
    sent: Vec<Sent>,
    heard: &[Event],
    mut gaps: impl Stream<Item = Gap> + Unpin,
) -> Vec<(Gap, usize)> {
    let mut lost = unheard(sent, heard);
    let mut told = Vec::new();
    loop {
        while let Some(Some(gap)) = gaps.next().now_or_never() {
            told.push((gap, 0));
        }
        for (gap, inside) in &mut told {
            let before = lost.len();
            lost.retain(|sent: &Sent| sent.ended < gap.from || sent.begun > gap.until);
            *inside += before - lost.len();
        }
        if lost.is_empty() {
            return told;
        }
        let what = format!("lost outside of {told:?}: {lost:?}");
        told.extend(soon(&what, gaps.next()).await.map(|gap| (gap, 0)));
    }
}

/// What its sender was told "sent" of, and that is not among these.
fn unheard(sent: Vec<Sent>, heard: &[Event]) -> Vec<Sent> {
    let heard: Vec<u32> = heard.iter().map(number).collect();
    let wrong = heard.windows(2).position(|pair| pair[0] >= pair[1]);
    if let Some(at) = wrong {
        let around = &heard[at.saturating_sub(10)..heard.len().min(at + 10)];
        panic!("twice or out of order: .. {around:?} ..");
    }
    let mut lost = Vec::new();
    for sent in sent {
        let was_heard = heard.binary_search(&sent.number).is_ok();
        match sent.told {
            Told::CertainlyNot => assert!(!was_heard, "certainly not, but heard: {sent:?}"),
            Told::Sent if !was_heard => lost.push(sent),
            Told::Sent | Told::Perhaps => {}
        }
    }
    lost
}

fn number(event: &Event) -> u32 {
    match event {
        Event::Text(text) => text.parse().expect("only numbers are sent"),
        event => panic!("{event:?} is no number"),
    }
}
