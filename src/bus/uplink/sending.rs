//! A message on its way out: how it travels, and what became of it.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Uplink;
use crate::bus::inbound::Own;
use crate::bus::past::Keep;
use crate::bus::scope::{MAX_UNION_COPIES, Reach, Route, Scope, Selection};
use crate::bus::wire::{Lasting, ONE_COPY};
use crate::bus::{Later, Published};
use crate::measures::Since;
use crate::model::delivery::{Settled, Spooled};
use crate::model::error::{PublishError, SendError};
use crate::model::form::Form;
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
    pub(crate) form: Form,
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
    since: Option<Since>,
    publishing: Option<BoxFuture<'static, Result<Published, PublishError>>>,
    is_known: bool,
    begun: Option<BegunSend<'a>>,
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

/// What became of one that the bus refused.
#[derive(Debug)]
pub(crate) struct RefusedSend {
    pub(crate) error: PublishError,
    pub(crate) came: CameHere,
    /// Some of it waits for what was sent before it, …
    pub(crate) waits: bool,
    /// … and so much does that this is to be delivered now.
    pub(crate) let_go: Vec<Own>,
}

/// What of a message that the bus refused this node's own sockets have already, or will have.
#[derive(Debug)]
pub(crate) enum CameHere {
    Whole,
    /// What came back on these topics, or waits.
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

    /// What became of it; and where it failed, what has come back all the same. `here`: how many of this node's own sockets are meant;
    /// the number of the next, the first being 1; and whether one is on a topic.
    pub(crate) async fn end(
        self,
        here: usize,
        newcomers: impl Fn() -> u64,
        is_heard: impl Fn(&Topic) -> bool,
    ) -> Result<Sent, RefusedSend> {
        let published = match self.publishing {
            None => Ok(Published::default()),
            Some(publishing) => self.uplink.published(self.since, publishing.await),
        };
        match published {
            Ok(Published {
                later: Some(later), ..
            }) => Ok(Self::spooled(self.uplink, self.is_known, later)),
            Ok(published) => {
                if let Some(begun) = self.begun.filter(|_| newcomers() > 1) {
                    begun.take(here > 0);
                }
                Ok(Sent {
                    nodes: self.is_known.then_some(published.nodes),
                    mark: published.mark,
                    key: match published.mark {
                        Some(_) => self.uplink.keyring.signing().await,
                        None => None,
                    },
                    spooled: None,
                })
            }
            Err(error) => {
                let counters = &self.uplink.counters;
                counters.record_failed_publish(error.maybe_sent);
                Err(match self.begun {
                    None => RefusedSend::of(error, CameHere::Whole),
                    Some(begun) => begun.fail(error, newcomers(), is_heard),
                })
            }
        }
    }
}

impl RefusedSend {
    fn of(error: PublishError, came: CameHere) -> Self {
        Self {
            error,
            came,
            waits: false,
            let_go: Vec::new(),
        }
    }
}

/// A kept message, until it is known what became of it.
struct BegunSend<'a> {
    uplink: &'a Uplink,
    number: u64,
    selection: &'a Selection,
    /// The first copy is for all of it.
    is_union: bool,
    envelope: Bytes,
}

impl BegunSend<'_> {
    fn take(self, is_here: bool) {
        let (topics, now) = (self.topics(), Instant::now());
        let mut echoes = self.uplink.echoes.lock();
        echoes.took(self.number, &topics, is_here, now);
    }

    fn fail(
        self,
        error: PublishError,
        older_than: u64,
        is_heard: impl Fn(&Topic) -> bool,
    ) -> RefusedSend {
        let own = |topic: &Topic| {
            let own = Own {
                topic: topic.clone(),
                envelope: self.envelope.clone(),
                older_than,
            };
            (own.envelope.len(), own)
        };
        let topics: SmallVec<[(Topic, bool); 1]> = self
            .topics()
            .into_iter()
            .map(|topic| (topic.clone(), is_heard(&topic)))
            .collect();
        let now = Instant::now();
        let mut echoes = self.uplink.echoes.lock();
        let failed = echoes.fail(self.number, &topics, self.is_union, now, own);
        drop(echoes);
        self.uplink.record_unordered(failed.let_go.len());
        RefusedSend {
            error,
            came: match self.is_union && !failed.elsewhere.is_empty() {
                true => CameHere::Whole,
                false => CameHere::On(failed.elsewhere),
            },
            waits: failed.waits,
            let_go: failed.let_go,
        }
    }

    /// Where it is kept.
    fn topics(&self) -> SmallVec<[Topic; 1]> {
        self.uplink.kept_of(self.selection)
    }
}

impl Drop for BegunSend<'_> {
    fn drop(&mut self) {
        self.uplink.echoes.lock().end(self.number);
    }
}

impl Uplink {
    /// Publishes a message: queued by the call, so that sends keep the order of the calls. What is kept comes back to this node's
    /// own sockets; everything else is for the other nodes alone.
    pub(crate) fn send<'a>(
        &'a self,
        selection: &'a Selection,
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
        let since = self.counters.measures.sending();
        let envelope = match topics.is_empty() {
            true => None,
            false => {
                let how = (lasting, since, how.form);
                Some(self.write_message(how, union, scope, message, manner)?)
            }
        };
        self.counters.sent.fetch_add(1, Relaxed);
        let begun = kept.zip(envelope.clone()).map(|(number, envelope)| {
            self.echoes.lock().begin(number);
            BegunSend {
                uplink: self,
                number,
                selection,
                is_union: union.is_some(),
                envelope,
            }
        });
        let size = selection.size();
        let publish = |envelope| self.bus.publish(topics, envelope, size, keep);
        Ok(Sending {
            uplink: self,
            since,
            publishing: envelope.map(publish),
            is_known: scope.targets.len() == 1 && how.reach == Reach::Everywhere,
            begun,
        })
    }

    /// How a message travels.
    pub(super) fn course(&self, selection: &Selection, is_ephemeral: bool) -> Course {
        let kept = match is_ephemeral || self.histories.is_off() {
            true => SmallVec::new(),
            false => self.kept_of(selection),
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
                    false => (self.carriers(selection), Some(number), keep),
                }
            }
        };
        Course {
            topics,
            union,
            keep: (!kept.is_empty()).then_some(keep),
        }
    }

    /// On what a union over several clocks travels: its own topics, or, of many, once by each clock to all nodes.
    fn carriers(&self, selection: &Selection) -> SmallVec<[Topic; 1]> {
        let carriers = selection.carriers();
        if carriers.len() <= MAX_UNION_COPIES {
            return carriers;
        }
        let all: HashSet<Topic> = carriers.iter().map(|one| self.bus.census(one)).collect();
        all.into_iter().collect()
    }

    /// Those of its topics of which something is kept.
    fn kept_of(&self, selection: &Selection) -> SmallVec<[Topic; 1]> {
        selection.filter(|topic| self.histories.of(topic.kind()).is_some())
    }

    /// Whether whoever hears a copy hears with it up to where each history of the union is known to him: where the one copy for
    /// all nodes has another clock, the others' would stand still.
    fn are_at_one_clock(&self, topics: &[Topic], kept: &[Topic]) -> bool {
        let [carrier] = topics else { return true };
        let clock = self.archive.clock(carrier);
        kept.iter().all(|topic| self.archive.clock(topic) == clock)
    }
}
