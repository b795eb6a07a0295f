//! What is published on a shard, and how it is kept there.

use bytes::Bytes;
use smallvec::SmallVec;

use super::Shard;
use crate::bus::past::Keep;
use crate::bus::redis::past::{Keeping, KeptList};
use crate::bus::redis::publication::{PublicationTold, Taken};
use crate::bus::redis::publisher::shut_down;
use crate::bus::scope::Size;
use crate::bus::{Later, Published};
use crate::model::error::PublishError;
use crate::model::history::mark::{Clock, Mark};
use crate::model::topic::Topic;

impl Shard {
    /// Queued by the call. In a Redis Cluster they are of one partition.
    pub(in crate::bus::redis) fn publish(
        &self,
        mut topics: SmallVec<[Topic; 1]>,
        envelope: Bytes,
        size: Size,
        keep: Option<Keep>,
    ) -> impl Future<Output = Result<Published, PublishError>> + Send + use<> {
        let mut channels: SmallVec<[String; 1]> =
            topics.iter().map(|topic| self.channels.of(topic)).collect();
        let bytes = envelope.len();
        let kept = keep.map(|keep| self.keeping(&topics, keep, &mut channels, bytes));
        let (first, keep) = kept.unzip();
        let first = first.as_ref().or(topics.first());
        let partition = first.and_then(|topic| self.channels.partition(topic));
        let clock = first.map_or(Clock::default(), |topic| self.clock(topic));
        let (subscriptions, topology) = (self.subscriptions.clone(), self.topology.clone());
        topics.retain(|topic| subscriptions.is_confirmed(topic));
        let publishing = self
            .publisher
            .publish(channels, envelope, size, partition, keep);
        async move {
            let published = publishing.await;
            if published.is_err() {
                topology.probe_now();
            }
            let PublicationTold {
                receivers,
                mark,
                later,
            } = published?;
            // Those that heard it surely: who subscribed meanwhile perhaps did not.
            let mut told = move |receivers: usize, mark: Option<Mark>| {
                topics.retain(|topic| subscriptions.is_confirmed(topic));
                Published {
                    nodes: receivers.saturating_sub(topics.len()),
                    comes_back: !topics.is_empty(),
                    mark: mark.map(|mark| (clock, mark)),
                    later: None,
                }
            };
            let Some(later) = later else {
                return Ok(told(receivers, mark));
            };
            let later = async move {
                let Taken { receivers, mark } = later.await.unwrap_or_else(|_| Err(shut_down()))?;
                Ok(told(receivers, mark))
            };
            Ok(Published {
                later: Some(Later::new(later)),
                ..Published::default()
            })
        }
    }

    /// How what is sent to these is kept, with empty channels for what is kept without being published. And a topic that is.
    fn keeping(
        &self,
        topics: &[Topic],
        keep: Keep,
        channels: &mut SmallVec<[String; 1]>,
        bytes: usize,
    ) -> (Topic, Box<Keeping>) {
        let list = |topic: &Topic| self.kept_list(topic);
        let is_union = matches!(keep, Keep::Union(_));
        let spools = self.common.room.is_some() && !matches!(keep, Keep::Silent(_));
        let (lists, kept) = match keep {
            Keep::Each => (topics.iter().map(list).collect(), None),
            Keep::Union(kept) if is_large(kept.len(), bytes) => {
                let mut lists: SmallVec<[_; 1]> = topics.iter().map(|_| None).collect();
                if lists.is_empty() {
                    lists.push(None);
                    channels.push(String::new());
                }
                let first = kept.into_iter().next();
                lists[0] = first.as_ref().map(|topic| self.unions(topic).list());
                (lists, first)
            }
            Keep::Union(kept) | Keep::Silent(kept) => {
                let of = |topic| kept.contains(topic).then(|| list(topic)).flatten();
                let mut lists: SmallVec<[_; 1]> = topics.iter().map(of).collect();
                for topic in kept.iter().filter(|topic| !topics.contains(topic)) {
                    lists.push(list(topic));
                    channels.push(String::new());
                }
                (lists, kept.into_iter().next())
            }
        };
        let first = kept.or_else(|| topics.first().cloned());
        let first = first.unwrap_or_else(Topic::all);
        let clock = self.channels.clock(&first);
        let keeping = Keeping {
            clock,
            lists,
            is_union,
            spools,
            doubt: None,
        };
        (first, Box::new(keeping))
    }

    /// That of a topic, if what is sent there is kept.
    fn kept_list(&self, topic: &Topic) -> Option<KeptList> {
        let history = self.common.settings.histories.of(topic.kind())?;
        Some(KeptList {
            key: self.channels.list(topic),
            messages: history.messages,
            lifetime: history.lifetime_millis(),
        })
    }
}

/// Whether a union is kept once, in a list of its clock's, and not in that of each topic: these are filled in one step, in which
/// Redis serves nobody else.
fn is_large(topics: usize, bytes: usize) -> bool {
    topics > MOST_LISTS || topics > 1 && topics * bytes > MOST_COPIED
}

/// Most lists that one step fills, …
const MOST_LISTS: usize = 64;
/// … and most bytes that it copies into them.
const MOST_COPIED: usize = 1024 * 1024;
