//! What a hub keeps, and in which order it is heard: all nodes hear it in that of its numbers.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Hub, KeptLists, Parcel};
use crate::bus::outage::LinkId;
use crate::bus::past::proof::ListLost;
use crate::bus::past::store::Store;
use crate::bus::past::{Entry, Keep, Past, ReadLimits, TopicPast};
use crate::model::history::mark::{Clock, Mark, Marks, Number, Run};
use crate::model::history::token::Key;
use crate::model::history::{History, Missed};
use crate::model::id::NodeId;
use crate::model::topic::Topic;

#[derive(Debug, Default)]
pub(super) struct HubArchive(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Made when the first is kept.
    run: Option<Run>,
    store: Store,
    key: Option<Key>,
    /// What was not heard yet.
    unheard: VecDeque<Unheard>,
    /// Somebody tells it at present, and will tell what comes meanwhile.
    is_told: bool,
}

#[derive(Debug)]
enum Unheard {
    Message {
        topic: Topic,
        channel: String,
        /// None, of what is not kept and keeps its place among what is.
        number: Option<Number>,
        envelope: Bytes,
    },
    /// This node has heard what came before, if it is not cut off.
    Probe(NodeId, Instant),
}

impl HubArchive {
    /// What positions are signed with.
    pub(super) fn key(&self) -> Key {
        *self.0.lock().key.get_or_insert_with(Key::random)
    }

    /// Numbers and keeps it. The last of its marks, and whether the caller has to [tell](Hub::tell) what is unheard.
    pub(super) fn add(&self, parcel: &Parcel, keep: &Keep, places: &KeptLists) -> (Mark, bool) {
        let (mut state, now) = (self.0.lock(), micros());
        let run = state.run();
        let mut number = state.store.advance(run, now, 1);
        let envelope = &parcel.envelope;
        let entry = |number| Entry {
            number,
            envelope: envelope.clone(),
        };
        for (n, (key, history)) in places.iter().enumerate() {
            match keep {
                Keep::Each => break,
                Keep::Silent(_) if n > 0 => number = state.store.advance(run, now, 1),
                Keep::Silent(_) | Keep::Union(_) => {}
            }
            state.store.append(key, entry(number), history, now);
        }
        for (n, (topic, channel)) in parcel.topics.iter().enumerate() {
            if let (Keep::Each, Some((key, history))) = (keep, places.get(n)) {
                if n > 0 {
                    number = state.store.advance(run, now, 1);
                }
                state.store.append(key, entry(number), history, now);
            }
            state.unheard.push_back(Unheard::Message {
                topic: topic.clone(),
                channel: channel.clone(),
                number: Some(number),
                envelope: envelope.clone(),
            });
        }
        let tells = !std::mem::replace(&mut state.is_told, true);
        (Mark { run, number }, tells)
    }

    /// A node is to be told that it has heard what was numbered until now. Whether the caller has to [tell](Hub::tell) it.
    pub(super) fn probe(&self, node: NodeId) -> bool {
        let mut state = self.0.lock();
        let probe = Unheard::Probe(node, Instant::now());
        state.unheard.push_back(probe);
        !std::mem::replace(&mut state.is_told, true)
    }

    /// What is not kept goes behind what is, its publisher hears it as well. Whether the caller has to tell what is unheard.
    pub(super) fn pass(&self, parcel: &Parcel) -> bool {
        let mut state = self.0.lock();
        for (topic, channel) in &parcel.topics {
            state.unheard.push_back(Unheard::Message {
                topic: topic.clone(),
                channel: channel.clone(),
                number: None,
                envelope: parcel.envelope.clone(),
            });
        }
        !std::mem::replace(&mut state.is_told, true)
    }

    fn next(&self) -> Option<Unheard> {
        let mut state = self.0.lock();
        let next = state.unheard.pop_front();
        state.is_told = next.is_some();
        next
    }

    /// What came to these since the mark, or what there is; of a topic of which nothing is kept, nothing is known.
    pub(super) fn read(
        &self,
        topics: impl Iterator<Item = Option<(String, History)>>,
        since: Option<&Marks>,
        limits: ReadLimits,
    ) -> Past {
        let (mut state, now) = (self.0.lock(), micros());
        let run = state.run();
        let number = state.store.advance(run, now, 1);
        let (clock, mut left) = (Clock::default(), limits.bytes);
        let since = since.map(|marks| marks.of(clock));
        let mut entries_of = |(key, history): (String, History)| {
            let since = since
                .map(|mark| mark.ok_or(Missed::Forgotten))
                .transpose()?;
            let entries = state.store.read(
                &key,
                since,
                &history,
                now,
                limits.entries,
                ListLost::default(),
            )?;
            let bytes: usize = entries.iter().map(|entry| entry.envelope.len()).sum();
            left = left.checked_sub(bytes).ok_or(Missed::TooMany)?;
            Ok(entries)
        };
        let topics = topics.map(|topic| TopicPast {
            clock,
            cut: Some(Mark { run, number }),
            entries: topic.ok_or(Missed::Forgotten).and_then(&mut entries_of),
        });
        Past {
            topics: topics.collect(),
        }
    }
}

impl State {
    fn run(&mut self) -> Run {
        let letters = || std::iter::repeat_with(fastrand::lowercase).take(Run::LETTERS);
        *self.run.get_or_insert_with(|| {
            Run::of(&letters().collect::<String>()).expect("letters are what it is made of")
        })
    }
}

impl Hub {
    /// Tells what is numbered, in that order, however many publish at once.
    pub(super) fn tell(&self) {
        while let Some(unheard) = self.archive.next() {
            match unheard {
                Unheard::Message {
                    topic,
                    channel,
                    number,
                    envelope,
                } => {
                    for listener in self.listeners(&channel) {
                        listener.heard(topic.as_str(), number, &envelope);
                        while listener.flush() {}
                    }
                }
                Unheard::Probe(node, at) => self.prove(node, at),
            }
        }
    }

    fn prove(&self, node: NodeId, at: Instant) {
        let is_cut = self.faults.read().is_cut(node);
        if let Some(listener) = self.listener(node).filter(|_| !is_cut) {
            listener.up(LinkId::ONLY, at);
        }
    }
}

fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
