//! The node processes, as the driver sees them: started, asked, frozen, killed, ended with their value.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::dispatch::Report;
use crate::ledger::Entry;
use crate::referee::Referee;
use crate::words::Life;

/// Where a node's clients connect, while it lives.
pub type Door = watch::Receiver<Option<(Life, SocketAddr)>>;

#[derive(Debug)]
pub struct NodeProcess {
    pub life: Life,
    redis_url: String,
    /// Further arguments.
    words: Vec<&'static str>,
    referee: Arc<Mutex<Referee>>,
    door: watch::Sender<Option<(Life, SocketAddr)>>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    /// What it says when asked.
    answers: mpsc::UnboundedReceiver<Report>,
    listening: JoinHandle<()>,
}

impl NodeProcess {
    pub fn start(
        node: usize,
        redis_url: String,
        words: Vec<&'static str>,
        referee: Arc<Mutex<Referee>>,
    ) -> Self {
        let mut process = Self {
            life: Life { node, life: 0 },
            redis_url,
            words,
            referee,
            door: watch::Sender::new(None),
            running: None,
        };
        process.restart();
        process
    }

    /// A new life, after [`kill`](Self::kill).
    pub fn restart(&mut self) {
        self.life.life += 1;
        let mut command = Command::new(std::env::current_exe().expect("we run"));
        command.args(["node", &self.life.to_string(), &self.redis_url]);
        command.args(&self.words);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("we can start ourselves");
        let input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        let (asked, answers) = mpsc::unbounded_channel();
        let (life, referee, door) = (self.life, self.referee.clone(), self.door.clone());
        let listening = tokio::spawn(listen(output, life, referee, door, asked));
        self.running = Some(Running {
            child,
            input,
            answers,
            listening,
        });
    }

    pub fn door(&self) -> Door {
        self.door.subscribe()
    }

    /// Ends it without warning.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().await.expect("it is our child");
            self.door.send_replace(None);
            // What it said before counts.
            running.listening.await.expect("it only reads");
            self.referee.lock().died(self.life);
        }
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let status = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Gives it a command and waits for its answer.
    pub async fn ask(&mut self, command: &str) -> Report {
        let running = self.running.as_mut().expect("it lives");
        let line = format!("{command}\n");
        running
            .input
            .write_all(line.as_bytes())
            .await
            .expect("it reads");
        let answer = timeout(Duration::from_secs(60), running.answers.recv()).await;
        answer.expect("it answers in time").expect("it lives")
    }

    /// Lets it shut down, and waits for its end.
    pub async fn finish(mut self) {
        if let Some(running) = self.running.take() {
            let Running {
                mut child, input, ..
            } = running;
            drop(input);
            let ended = timeout(Duration::from_secs(20), child.wait()).await;
            let status = ended.expect("it ends in time").expect("it is our child");
            assert!(status.success(), "node {} ended with {status}", self.life);
        }
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it lives, on linux");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a figure");
        let figure = line.trim().trim_end_matches(" kB").parse();
        figure.expect("a number")
    }

    fn pid(&self) -> u32 {
        let child = self.running.as_ref().map(|running| &running.child);
        child.and_then(Child::id).expect("it lives")
    }
}

/// Hands on what a node prints until it ends.
async fn listen(
    output: ChildStdout,
    life: Life,
    referee: Arc<Mutex<Referee>>,
    door: watch::Sender<Option<(Life, SocketAddr)>>,
    asked: mpsc::UnboundedSender<Report>,
) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A killed process may leave half a line.
        let Ok(report) = line.parse() else { continue };
        let mut referee = referee.lock();
        match report {
            Report::Port(port) => {
                door.send_replace(Some((life, ([127, 0, 0, 1], port).into())));
            }
            Report::Sent {
                audience,
                number,
                sent,
                done,
                outcome,
            } => {
                let entry = Entry {
                    number,
                    sent,
                    done,
                    outcome,
                };
                referee.sent(life, audience, entry);
            }
            Report::Up(at) => referee.health(life, true, at),
            Report::Degraded(at) => referee.health(life, false, at),
            Report::Gap { from, until } => referee.node_gap(life, from, until),
            Report::Lost {
                at,
                rolled_back,
                missed,
            } => referee.redis_lost(life, at, rolled_back, missed),
            Report::Ended { socket, code } => referee.ended(socket, code),
            Report::Answered(answer) => referee.answered(life, answer),
            answer @ (Report::Done | Report::Stats(_)) => {
                // Nobody may wait any more.
                let _ = asked.send(answer);
            }
        }
    }
}
