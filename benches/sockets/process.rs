//! The processes of a bench: each takes commands as lines and answers each with a number.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A process, ended with its value.
pub struct Process {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it said first; a server's port.
    pub port: u64,
}

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        Self::run(Command::new(own_program()).args(arguments))
    }

    /// With so many worker threads.
    pub fn on_workers(workers: usize, arguments: &[&str]) -> Self {
        let mut command = Command::new(own_program());
        command.env("TOKIO_WORKER_THREADS", workers.to_string());
        Self::run(command.args(arguments))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("we can start ourselves");
        let commands = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut process = Self {
            child,
            commands,
            answers,
            port: 0,
        };
        process.port = process.answer();
        process
    }

    /// A client with a socket for each of these users on each of these servers, which connects 100 at
    /// a time.
    pub fn load(targets: &[(&Process, &str, Range<usize>)]) -> Self {
        let target = |(server, prefix, users): &(&Process, &str, Range<usize>)| {
            format!("{}/{prefix}/{}/{}/100", server.port, users.start, users.end)
        };
        let targets: Vec<String> = targets.iter().map(target).collect();
        let targets = targets.iter().map(String::as_str);
        Self::start(&["load"].into_iter().chain(targets).collect::<Vec<_>>())
    }

    /// A client whose sockets all connect in the same moment.
    pub fn herd(server: &Process, sockets: usize) -> Self {
        Self::start(&[
            "load",
            &format!("{}/user-/0/{sockets}/{sockets}", server.port),
        ])
    }

    pub fn ask(&mut self, command: &str) -> u64 {
        writeln!(self.commands, "{command}").expect("it reads");
        self.answer()
    }

    /// CPU microseconds that a command takes.
    pub fn cpu_of(&mut self, command: &str) -> f64 {
        let before = self.ask("cpu");
        self.ask(command);
        (self.ask("cpu") - before) as f64
    }

    /// Waits for an answer.
    pub fn until(&mut self, question: &str, answer: u64) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let now = self.ask(question);
            if now == answer || answer > 0 && now > answer {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{question}: {now} instead of {answer}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until an answer stays.
    #[cfg(feature = "deflate")]
    pub fn until_still(&mut self, question: &str) {
        let mut before = u64::MAX;
        loop {
            let now = self.ask(question);
            if now == before {
                return;
            }
            before = now;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn answer(&mut self) -> u64 {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim()
            .parse()
            .unwrap_or_else(|_| panic!("an answer: {line:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_program() -> PathBuf {
    std::env::current_exe().expect("we run")
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Commands that every process knows.
pub fn own_figure(command: &str) -> Option<u64> {
    match command {
        "rss" => Some(resident_bytes("VmRSS:")),
        "peak" => Some(resident_bytes("VmHWM:")),
        "cpu" => Some(cpu_microseconds()),
        "fine_cpu" => Some(cpu_nanoseconds()),
        _ => None,
    }
}

fn resident_bytes(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(which))
        .expect("a figure");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        * 1024
}

/// User and system time of all threads, also of those that ended: 10 ms at a time.
fn cpu_microseconds() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a name")
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    (ticks(11) + ticks(12)) * 10_000
}

/// The same to the nanosecond, of the threads that are still there.
fn cpu_nanoseconds() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("linux");
    let spent = threads.flatten().filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    spent.sum()
}
