//! The one task of presence: it waits, hands what came to the rules, and does what they say.

use std::ops::ControlFlow;
use std::sync::Weak;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Host;
use super::act::Act;
use super::machine::Machine;
use crate::model::id::NodeId;

/// Who comes and goes here within so long is told together.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct PresenceTask<N> {
    host: Weak<N>,
    machine: Machine,
}

impl<N: Host> PresenceTask<N> {
    pub(crate) fn new(host: Weak<N>, me: NodeId, grace: Duration) -> Self {
        let machine = Machine::new(me, grace);
        Self { host, machine }
    }

    /// Runs as long as the node lives and is not shut down. After a panic it may run again, and goes on with what was
    /// left to do.
    pub(crate) async fn run(&mut self) {
        let Some(arrived) = self.host.upgrade().map(|host| host.mailbox().arrived()) else {
            return;
        };
        while self.look().await.is_continue() {
            self.wait(&arrived).await;
        }
        self.machine.end();
    }

    /// Until there is something to look at, and for whoever comes at about the same time.
    async fn wait(&self, arrived: &Notify) {
        let next = self.machine.poll_timeout();
        tokio::select! {
            () = arrived.notified() => {
                if self.host.upgrade().is_some_and(|host| host.mailbox().is_touched()) {
                    sleep(GATHER).await;
                }
            }
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
    }

    /// Until there is nothing to do for now, or the node is gone or shut down.
    async fn look(&mut self) -> ControlFlow<()> {
        let host = self.host.upgrade();
        let mail = host.as_ref().and_then(|host| host.mailbox().take());
        let (Some(host), Some(mail)) = (host, mail) else {
            return ControlFlow::Break(());
        };
        let host = &*host;
        for input in mail.inputs() {
            self.machine.handle(input, host, Instant::now());
        }
        self.machine.advance(host, Instant::now());
        while let Some(act) = self.machine.poll_act(Instant::now()) {
            match act {
                Act::Hear(topic) => host.hear(&topic).await,
                Act::Release(topic) => host.release(&topic),
                Act::Say(say) => {
                    let took = host.say(&say.to, &say.word).await;
                    self.machine.said(say.ticket, took, Instant::now());
                }
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::sync::Arc;

    use futures::{FutureExt, StreamExt};
    use parking_lot::Mutex;
    use tokio::sync::{Semaphore, mpsc};
    use tokio::task::yield_now;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::model::description::Descriptions;
    use crate::model::id::UserId;
    use crate::model::topic::Topic;
    use crate::presence::word::{Report, WatchRequest};
    use crate::presence::{Here, Mailbox, Word};
    use crate::tasks::supervise;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    #[derive(Debug, PartialEq)]
    enum Did {
        Hear(Topic),
        Release(Topic),
        Say(Topic, Word),
    }

    /// A node that does what it is told, if there are permits, and tells of it.
    struct Fake {
        mailbox: Mailbox,
        users: Mutex<HashSet<UserId>>,
        permits: Semaphore,
        did: mpsc::UnboundedSender<Did>,
    }

    impl Fake {
        fn start() -> (Arc<Self>, mpsc::UnboundedReceiver<Did>) {
            let (did, done) = mpsc::unbounded_channel();
            let fake = Arc::new(Self {
                mailbox: Mailbox::default(),
                users: Mutex::default(),
                permits: Semaphore::new(usize::MAX >> 4),
                did,
            });
            let mut task = PresenceTask::new(Arc::downgrade(&fake), ME, Duration::ZERO);
            tokio::spawn(async move {
                let stop = CancellationToken::new();
                supervise(
                    "presence",
                    &stop,
                    || (),
                    &mut task,
                    |task| task.run().boxed(),
                )
                .await;
            });
            (fake, done)
        }

        fn join(&self, name: &str) {
            self.users.lock().insert(name.into());
            self.mailbox.touch(&name.into(), [&Topic::all()]);
        }

        fn hear_request(&self) {
            let json = Word::Request(watch()).to_json();
            self.mailbox.heard_request(OTHER, &json);
        }
    }

    impl Here for Fake {
        fn watch(&self, topic: &Topic) -> HashMap<UserId, Descriptions> {
            self.mailbox.watch(topic, true);
            let users = self.users.lock();
            let users = users.iter().cloned();
            users.map(|user| (user, Descriptions::default())).collect()
        }

        fn unwatch(&self, topic: &Topic) {
            self.mailbox.watch(topic, false);
        }

        fn user_on(&self, user: &UserId, _: &Topic) -> Option<Descriptions> {
            assert_ne!(user.as_str(), "who makes it panic");
            self.users.lock().get(user).map(|_| Descriptions::default())
        }

        fn knows(&self, _: NodeId) -> bool {
            true
        }

        fn nodes(&self) -> Vec<NodeId> {
            vec![OTHER]
        }
    }

    impl Host for Fake {
        fn mailbox(&self) -> &Mailbox {
            &self.mailbox
        }

        async fn say(&self, to: &Topic, word: &Word) -> Option<usize> {
            let _ = self.did.send(Did::Say(to.clone(), word.clone()));
            self.permits.acquire().await.ok()?.forget();
            Some(1)
        }

        async fn hear(&self, topic: &Topic) {
            let _ = self.did.send(Did::Hear(topic.clone()));
        }

        fn release(&self, topic: &Topic) {
            let _ = self.did.send(Did::Release(topic.clone()));
        }
    }

    fn watch() -> WatchRequest {
        WatchRequest::Watch {
            topic: Topic::all().as_str().to_owned(),
            described: false,
        }
    }

    /// Everybody of all, to the other node.
    fn answer(names: &[&str]) -> Did {
        let report = Report::Everybody {
            topic: Topic::all().as_str().to_owned(),
            users: names.iter().map(|name| UserId::from(*name)).collect(),
            described: None,
            first: true,
            last: true,
        };
        Did::Say(Topic::node(OTHER), Word::Report(report))
    }

    /// Who came to all.
    async fn came(done: &mut mpsc::UnboundedReceiver<Did>) -> HashSet<String> {
        match timeout(Duration::from_secs(10), done.recv()).await {
            Ok(Some(Did::Say(_, Word::Report(Report::Changes { online, .. })))) => {
                online.iter().map(|user| user.as_str().to_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_reader_is_served_from_its_first_look_to_its_end() {
        let (fake, mut done) = Fake::start();
        let all = Topic::all();
        let reader = fake.mailbox.reader(all.clone(), None);
        assert_eq!(done.recv().await, Some(Did::Hear(all.clone())));
        let asked = Did::Say(Topic::nodes(), Word::Request(watch()));
        assert_eq!(done.recv().await, Some(asked));
        drop(reader);
        assert_eq!(done.recv().await, Some(Did::Release(all)));
        assert!(matches!(done.recv().await, Some(Did::Say(..))));
    }

    #[tokio::test]
    async fn who_comes_at_about_the_same_time_is_told_together() {
        let (fake, mut done) = Fake::start();
        fake.hear_request();
        assert_eq!(done.recv().await, Some(answer(&[])));
        // A machine may sleep through that time; not always.
        for n in 0..100 {
            fake.join(&format!("x {n}"));
            // The task sees it.
            yield_now().await;
            fake.join(&format!("y {n}"));
            match came(&mut done).await.len() {
                1 => assert_eq!(came(&mut done).await.len(), 1),
                both => return assert_eq!(both, 2),
            }
        }
        panic!("never together");
    }

    #[tokio::test]
    async fn a_word_is_said_when_the_one_before_was() {
        let (fake, mut done) = Fake::start();
        let all = fake.permits.available_permits();
        fake.permits.forget_permits(all);
        fake.hear_request();
        assert_eq!(done.recv().await, Some(answer(&[])));
        fake.join("x");
        let early = timeout(5 * GATHER, done.recv()).await;
        assert!(early.is_err(), "{early:?}");
        fake.permits.add_permits(1);
        assert_eq!(came(&mut done).await.len(), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_one_look_and_not_the_task() {
        let (fake, mut done) = Fake::start();
        fake.hear_request();
        assert_eq!(done.recv().await, Some(answer(&[])));
        fake.join("who makes it panic");
        while fake.mailbox.is_touched() {
            sleep(GATHER).await;
        }
        fake.join("x");
        assert_eq!(came(&mut done).await.len(), 1);
    }

    #[tokio::test]
    async fn it_ends_with_its_node_and_when_that_is_shut_down_and_so_do_readers() {
        for shut_down in [true, false] {
            let (fake, mut done) = Fake::start();
            let mut reader = fake.mailbox.reader(Topic::all(), None);
            for _ in 0..2 {
                assert!(done.recv().await.is_some(), "control: the task has it");
            }
            match shut_down {
                true => fake.mailbox.stop(),
                false => drop(fake),
            }
            let end = timeout(Duration::from_secs(10), reader.next()).await;
            assert_eq!(end, Ok(None));
        }
    }
}
