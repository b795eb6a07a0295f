//! Asks the cluster who is there, now and then and in floods, also from runtimes that live for one question.

use std::time::Duration;

use axum_cluster::{Audience, Broadcaster, SocketId};
use futures::future::{Either, select};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::answer::{Answer, Verdict};
use crate::dispatch::Report;
use crate::node::say;
use crate::words::{NODES, ROOMS, STEADY, Target, USERS, WIDE, address, now, user_id};

/// So many different questions are a flood: more than a node answers or remembers at once.
const FLOOD: usize = 8_000;
/// Beside it, so many threads ask the same, of a user of this very node, so many times.
const THREADS: usize = 8;
const TIMES: usize = 20;
/// A question has failed after so many half seconds; those in which the whole process is frozen are one.
const PATIENCE: usize = 40;

#[derive(Clone, Debug)]
pub struct Inquirer {
    pub broadcaster: Broadcaster,
    pub node: usize,
    /// Now and then an answer is falsified.
    pub sabotage: bool,
}

/// What can be asked of an audience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    Count,
    Sockets,
    /// Of a single user.
    IsOnline,
}

impl Inquirer {
    /// Asks now and then, until it is time to be silent.
    pub async fn run(self, speak: watch::Receiver<bool>) {
        while *speak.borrow() {
            let pause = Duration::from_millis(fastrand::u64(50..250));
            sleep(pause).await;
            let elsewhere = Target::User(self.steady_elsewhere());
            let (question, targets) = match fastrand::u8(0..6) {
                0 | 1 => (Question::IsOnline, vec![elsewhere]),
                2 => (Question::Sockets, vec![elsewhere]),
                3 => (Question::Sockets, vec![Target::All]),
                _ => (
                    Question::Count,
                    vec![
                        Target::User(fastrand::u16(0..USERS)),
                        Target::Room(fastrand::u16(0..ROOMS)),
                    ],
                ),
            };
            let audience = address(&self.broadcaster, &targets);
            match fastrand::u8(0..4) {
                0 => self.ask_from_outside(question, targets).await,
                _ => self.ask(question, audience, targets).await,
            }
        }
    }

    /// Thousands of different questions at once, most of them to one node.
    pub async fn flood(&self, to: usize, sockets: Vec<SocketId>) {
        let mut asking = JoinSet::new();
        let here = STEADY
            .into_iter()
            .find(|user| usize::from(*user) % NODES == self.node);
        for _ in 0..THREADS {
            let (inquirer, targets) = (self.clone(), here.map(Target::User));
            asking.spawn(async move {
                for _ in 0..TIMES {
                    let targets = targets.into_iter().collect();
                    inquirer.ask_from_outside(Question::Sockets, targets).await;
                }
            });
        }
        let there = STEADY.filter(|user| usize::from(*user) % NODES == to);
        let there: Vec<u16> = there.collect();
        for n in 0..FLOOD {
            let target = match n % 16 {
                0 => Target::Room(fastrand::u16(WIDE)),
                1 if !sockets.is_empty() => Target::Socket(sockets[n / 16 % sockets.len()]),
                _ => Target::User(there[n % there.len()]),
            };
            let question = match n % 32 {
                2 => Question::Sockets,
                _ => Question::Count,
            };
            // Different questions about the same sockets, so that none shares another's answer.
            let audience = address(&self.broadcaster, &[target]).except_user(format!("nobody-{n}"));
            let inquirer = self.clone();
            asking.spawn(async move { inquirer.ask(question, audience, vec![target]).await });
        }
        asking.join_all().await;
    }

    /// A user whose only socket is at another node.
    fn steady_elsewhere(&self) -> u16 {
        loop {
            let user = fastrand::u16(STEADY);
            if usize::from(user) % NODES != self.node {
                return user;
            }
        }
    }

    /// Asks on a runtime that is gone afterwards.
    async fn ask_from_outside(&self, question: Question, targets: Vec<Target>) {
        let inquirer = self.clone();
        let (over, wait) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let audience = address(&inquirer.broadcaster, &targets);
            runtime.block_on(inquirer.ask(question, audience, targets));
            drop(runtime);
            // Nobody may wait any more.
            let _ = over.send(());
        });
        wait.await.expect("the question does not panic");
    }

    async fn ask(&self, question: Question, audience: Audience, targets: Vec<Target>) {
        let asked = now();
        let answering = Box::pin(self.verdict(question, audience, &targets));
        let patience = Box::pin(async {
            for _ in 0..PATIENCE {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let mut verdict = match select(answering, patience).await {
            Either::Left((Some(verdict), _)) => verdict,
            Either::Left((None, _)) => return,
            Either::Right(_) => Verdict::Unanswered,
        };
        if self.sabotage && fastrand::u8(0..50) == 0 {
            verdict = verdict.falsified();
        }
        say(&Report::Answered(Answer {
            asked,
            told: now(),
            verdict,
            targets,
        }));
    }

    /// `None` when it was an error.
    async fn verdict(
        &self,
        question: Question,
        audience: Audience,
        targets: &[Target],
    ) -> Option<Verdict> {
        let (count, complete, missing) = match (question, targets) {
            (Question::IsOnline, [Target::User(user)]) => {
                let online = self.broadcaster.is_online(user_id(*user)).await;
                return online.ok().map(Verdict::Online);
            }
            (Question::Sockets, _) => {
                let roster = audience.sockets().await.ok()?;
                let missing = roster.missing().to_vec();
                (roster.sockets().len(), roster.is_complete(), missing)
            }
            _ => {
                let count = audience.count().await.ok()?;
                let missing = count.missing().to_vec();
                (count.sockets(), count.is_complete(), missing)
            }
        };
        Some(Verdict::Sockets {
            count,
            complete,
            missing,
        })
    }
}
