//! A message on its way out: how it travels, and what became of it.

use std::sync::atomic::Ordering::Relaxed;

use futures::FutureExt;
use futures::future::BoxFuture;
use smallvec::SmallVec;

use super::Uplink;
use crate::bus::past::Keep;
use crate::bus::scope::{Reach, Route, Scope, Selection};
use crate::bus::wire::{Lasting, ONE_COPY};
use crate::bus::{Later, Published};
use crate::measures::Since;
use crate::model::delivery::{Settled, Spooled};
use crate::model::error::{PublishError, SendError};
use crate::model::history::mark::{Clock, Mark};
use crate::model::history::token::Key;
use crate::model::manner::Manner;
use crate::model::message::Message;
use crate::model::topic::Topic;

/// What a send is told beside the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) reach: Reach,
    /// Not kept, whatever is.
    pub(crate) is_ephemeral: bool,
}

/// How a message travels: on which topics, its number where it names its targets, and how it is kept.
#[derive(Debug, Default)]
pub(super) struct Course {
    topics: SmallVec<[Topic; 1]>,
    union: Option<u64>,
    pub(super) keep: Option<Keep>,
}

/// A message that is queued.
#[must_use = "it is queued, and what becomes of it is told to whoever waits"]
pub(crate) struct Sending<'a> {
    uplink: &'a Uplink,
    since: Since,
    publishing: Option<BoxFuture<'static, Result<Published, PublishError>>>,
    is_known: bool,
    /// The first copy is for all of it.
    is_union: bool,
    begun: Option<Begun<'a>>,
}

/// What became of one.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Other nodes that took it, where that can be known.
    pub(crate) nodes: Option<usize>,
    pub(crate) mark: Option<(Clock, Mark)>,
    pub(crate) key: Option<Key>,
    /// It waits for the bus to be back.
    pub(crate) spooled: Option<Spooled>,
}

/// What of a message that the bus refused this node's own sockets have already.
#[derive(Debug)]
pub(crate) enum Came {
    Whole,
    /// What came back on these topics.
    On(SmallVec<[Topic; 1]>),
}

impl Sending<'_> {
    /// Whether this node's own sockets get it when it comes back.
    pub(crate) fn is_kept(&self) -> bool {
        self.begun.is_some()
    }

    /// It waits for the bus to be back, and comes back to this node's own sockets whenever that is.
    fn spooled(uplink: &Uplink, is_known: bool, later: Later) -> Sent {
        uplink.counters.spooled.fetch_add(1, Relaxed);
        let keyring = uplink.keyring.clone();
        let settled = async move {
            let published = later.0.await?;
            Ok(Settled {
                nodes: is_known.then_some(published.nodes),
                mark: published.mark,
                key: match published.mark {
                    Some(_) => keyring.signing().await,
                    None => None,
                },
            })
        };
        Sent {
            nodes: None,
            mark: None,
            key: None,
            spooled: Some(Spooled::new(settled.boxed())),
        }
    }

    /// What became of it; and where it failed, what has come back all the same.
    pub(crate) async fn end(self) -> Result<Sent, (PublishError, Came)> {
        let published = match self.publishing {
            None => Ok(Published::default()),
            Some(publishing) => self.uplink.published(self.since, publishing.await),
        };
        match published {
            Ok(Published {
                later: Some(later), ..
            }) => Ok(Self::spooled(self.uplink, self.is_known, later)),
            Ok(published) => Ok(Sent {
                spooled: None,
                nodes: self.is_known.then_some(published.nodes),
                mark: published.mark,
                key: match published.mark {
                    Some(_) => self.uplink.keyring.signing().await,
                    None => None,
                },
            }),
            Err(error) => {
                let counters = &self.uplink.counters;
                counters.record_failed_publish(error.maybe_sent);
                let came = match self.begun {
                    None => Came::Whole,
                    Some(begun) => match begun.fail() {
                        came if self.is_union && !came.is_empty() => Came::Whole,
                        came => Came::On(came),
                    },
                };
                Err((error, came))
            }
        }
    }
}

/// A kept message, until it is known what became of it.
struct Begun<'a> {
    uplink: &'a Uplink,
    number: u64,
}

impl<'a> Begun<'a> {
    fn of(uplink: &'a Uplink, number: u64) -> Self {
        uplink.echoes.lock().begin(number);
        Self { uplink, number }
    }

    fn fail(self) -> SmallVec<[Topic; 1]> {
        self.uplink.echoes.lock().fail(self.number)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.uplink.echoes.lock().end(self.number);
    }
}

impl Uplink {
    /// Publishes a message: queued by the call, so that sends keep the order of the calls. What is kept comes back to this node's
    /// own sockets; everything else is for the other nodes alone.
    pub(crate) fn send<'a>(
        &'a self,
        selection: &Selection,
        scope: &Scope<'_>,
        message: &Message,
        manner: &Manner,
        how: How,
    ) -> Result<Sending<'a>, SendError> {
        let Course {
            mut topics,
            union,
            keep,
        } = match how.reach {
            Reach::Here => Course::default(),
            Reach::Everywhere => self.course(selection, how.is_ephemeral),
        };
        if keep.is_none() {
            topics.retain(|topic| *topic != self.own);
        }
        let kept = keep.as_ref().map(|_| self.next_union.fetch_add(1, Relaxed));
        let lasting = match kept {
            Some(number) => Lasting::Kept(number),
            None if how.is_ephemeral => Lasting::Ephemeral,
            None => Lasting::Unsaid,
        };
        let envelope = match topics.is_empty() {
            true => None,
            false => Some(self.write_message(lasting, union, scope, message, manner)?),
        };
        self.counters.sent.fetch_add(1, Relaxed);
        let begun = kept.map(|number| Begun::of(self, number));
        let since = Since::now();
        let size = selection.size();
        let publish = |envelope| self.bus.publish(topics, envelope, size, keep);
        Ok(Sending {
            uplink: self,
            since,
            publishing: envelope.map(publish),
            is_known: scope.targets.len() == 1 && how.reach == Reach::Everywhere,
            is_union: union.is_some(),
            begun,
        })
    }

    /// How a message travels.
    pub(super) fn course(&self, selection: &Selection, is_ephemeral: bool) -> Course {
        let is_kept = |topic: &Topic| self.histories.of(topic.kind()).is_some();
        let kept = match is_ephemeral || self.histories.is_off() {
            true => SmallVec::new(),
            false => selection.filter(is_kept),
        };
        let (topics, union, keep) = match selection.route() {
            // They are of one kind.
            Route::Separate(topics) => (topics, None, Keep::Each),
            Route::Union(topics) if topics.len() == 1 && kept.is_empty() => {
                (topics, Some(ONE_COPY), Keep::Each)
            }
            Route::Union(topics) => {
                let number = self.next_union.fetch_add(1, Relaxed);
                let keep = Keep::Union(kept.clone());
                match self.are_at_one_clock(&topics, &kept) {
                    true => (topics, Some(number), keep),
                    false => (selection.carriers(), Some(number), keep),
                }
            }
        };
        Course {
            topics,
            union,
            keep: (!kept.is_empty()).then_some(keep),
        }
    }

    /// Whether whoever hears a copy hears with it up to where each history of the union is known to him: where the one copy for
    /// all nodes has another clock, the others' would stand still.
    fn are_at_one_clock(&self, topics: &[Topic], kept: &[Topic]) -> bool {
        let [carrier] = topics else { return true };
        let clock = self.bus.clock(carrier);
        kept.iter().all(|topic| self.bus.clock(topic) == clock)
    }
}
