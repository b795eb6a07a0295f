//! Redis Cluster: whoever asks its servers is told which of them serves which partition.
//!
//! One task asks (the [`Cartographer`]), by one connection as long as that is answered: at every hint, and now and then
//! without one. Whether an answer suffices is decided by the rules of [`Chart`], when to ask next by those of [`Refresh`].
//! Where an answer does not suffice or is late, other servers are asked as well, one by one.

mod answer;
mod ask;
mod chart;
mod follow;
mod refresh;
mod view;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use self::answer::ClusterAnswer;
use self::ask::{Witness, WitnessAnswer};
use self::chart::{Chart, ChartFinding};
pub(in crate::bus::redis) use self::follow::{Follower, nowhere};
use self::refresh::Refresh;
use self::view::View;
use super::address::ServerAddress;
use super::options::ClusterTarget;

/// So long a server is waited for before the next one is asked beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// When all are asked and an answer is there that does not suffice alone, the others are waited for so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// More servers of one cluster are not asked, but for those that the URL names.
const MOST: usize = 32;
/// Failures that are told at once.
const QUOTED: usize = 3;

/// The task that asks how the cluster is divided.
#[derive(Debug)]
pub(in crate::bus::redis) struct Cartographer {
    target: Arc<ClusterTarget>,
    hints: Arc<Notify>,
    sight: watch::Sender<Sight>,
    witness: Option<Witness>,
    chart: Chart,
    refresh: Refresh,
}

/// What is known of a cluster.
#[derive(Clone, Debug, Default)]
pub(in crate::bus::redis) struct Sight {
    /// How it is divided; none as long as nobody has told.
    pub(in crate::bus::redis) view: Option<Arc<View>>,
    /// When it was asked for that last, and told it.
    pub(in crate::bus::redis) asked: Option<Instant>,
    /// Why nobody tells how it is divided by now. What is known goes on to hold.
    pub(in crate::bus::redis) silence: Option<Arc<str>>,
}

impl Cartographer {
    /// Asks this often while nothing happens. Whoever finds that the cluster may be divided otherwise notifies `hints`: by
    /// MOVED, a subscription that ended by itself, a connection that was lost, a primary that is none.
    pub(in crate::bus::redis) fn new(
        target: Arc<ClusterTarget>,
        hints: Arc<Notify>,
        interval: Duration,
    ) -> Self {
        Self {
            target,
            hints,
            sight: watch::Sender::default(),
            witness: None,
            chart: Chart::default(),
            refresh: Refresh::new(interval, Instant::now()),
        }
    }

    /// What is known, and becomes known.
    pub(in crate::bus::redis) fn sight(&self) -> watch::Receiver<Sight> {
        self.sight.subscribe()
    }

    /// Asks servers how the cluster is divided, for ever.
    pub(in crate::bus::redis) async fn run(&mut self) {
        let hints = self.hints.clone();
        loop {
            tokio::select! {
                () = sleep_until(self.refresh.due()) => self.look().await,
                () = hints.notified() => self.refresh.hint(Instant::now()),
            }
        }
    }

    async fn look(&mut self) {
        let asked = Instant::now();
        self.refresh.asks(asked);
        let (answers, failures) = self.survey(asked).await;
        let finding = self.chart.hear(answers, asked);
        let unanswered = || ChartFinding::Doubted {
            view: None,
            reason: unanswered(&failures),
        };
        self.tell(finding.unwrap_or_else(unanswered), asked);
    }

    fn tell(&mut self, finding: ChartFinding, asked: Instant) {
        let (view, silence) = match finding {
            ChartFinding::Confirmed => (None, None),
            ChartFinding::Changed(view) => (Some(view), None),
            ChartFinding::Doubted { view, reason } => (view, Some(reason)),
        };
        let (now, random) = (Instant::now(), fastrand::f64());
        match &silence {
            None => self.refresh.answered(now, random),
            Some(reason) => {
                tracing::debug!(%reason, "nobody tells how the cluster is divided");
                self.refresh.failed(now, random);
            }
        }
        if let Some(view) = &view {
            let (primaries, unserved) = (view.primaries().len(), view.unserved().len());
            tracing::info!(primaries, unserved, "the cluster is divided anew");
        }
        self.sight.send_modify(|sight| {
            if silence.is_none() || view.is_some() {
                sight.asked = Some(asked);
            }
            sight.view = view.or_else(|| sight.view.take());
            sight.silence = silence;
        });
    }

    /// Asks one server after the other until an answer suffices; whoever gives that is asked first the next time.
    async fn survey(&mut self, asked: Instant) -> (Vec<ClusterAnswer>, Vec<WitnessFailure>) {
        let target = self.target.clone();
        let mut waiting = self.servers().into_iter();
        let mut asking = FuturesUnordered::new();
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        match self.witness.take() {
            Some(witness) => asking.push(ask(&target, witness)),
            None => asking.extend(waiting.next().map(|server| find(&target, server))),
        }
        loop {
            let patience = match (waiting.len(), answers.len()) {
                (1.., _) => Some(HEAD_START),
                (0, 1..) => Some(PATIENCE),
                (0, 0) => None,
            };
            let told = match patience {
                Some(patience) => timeout(patience, asking.next()).await.ok(),
                None => Some(asking.next().await),
            };
            match told {
                Some(Some((_, Ok((witness, answer))))) => {
                    answers.push(answer);
                    if self.chart.suffices(&answers, asked) {
                        self.witness = Some(witness);
                        break;
                    }
                }
                Some(Some((server, Err(why)))) => failures.push((server, why)),
                Some(None) => break,
                None if waiting.len() == 0 => break,
                None => {}
            }
            asking.extend(waiting.next().map(|server| find(&target, server)));
        }
        (answers, failures)
    }

    /// Whom to ask: at random, so that not all nodes ask one server, and those that the URL names at last.
    fn servers(&self) -> Vec<ServerAddress> {
        let mut servers = Vec::new();
        if let Some(view) = self.chart.view() {
            servers.extend(view.nodes().cloned());
            fastrand::shuffle(&mut servers);
            servers.truncate(MOST);
        }
        let seeds = self.target.seeds.iter();
        let mut seeds: Vec<ServerAddress> = seeds
            .filter(|seed| !servers.contains(seed))
            .cloned()
            .collect();
        fastrand::shuffle(&mut seeds);
        servers.append(&mut seeds);
        servers
    }
}

type WitnessFailure = (ServerAddress, Arc<str>);

fn find(
    target: &Arc<ClusterTarget>,
    server: ServerAddress,
) -> BoxFuture<'static, (ServerAddress, WitnessAnswer)> {
    let target = target.clone();
    async move {
        let told = Witness::find(&target, &server).await;
        (server, told)
    }
    .boxed()
}

fn ask(
    target: &Arc<ClusterTarget>,
    witness: Witness,
) -> BoxFuture<'static, (ServerAddress, WitnessAnswer)> {
    let (target, server) = (target.clone(), witness.host().clone());
    async move { (server, witness.ask(&target).await) }.boxed()
}

fn unanswered(failures: &[WitnessFailure]) -> Arc<str> {
    let quoted = failures.iter().take(QUOTED);
    let quoted: Vec<_> = quoted.map(|(host, why)| format!("{host}: {why}")).collect();
    let more = match failures.len().saturating_sub(QUOTED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let quoted = quoted.join(", ");
    format!("no server tells how the cluster is divided ({quoted}{more})").into()
}

/// How many partitions have a primary by this answer, and how many have none.
#[cfg(any(fuzzing, axum_cluster_internals))]
pub(crate) fn read_view(bytes: &[u8]) -> Option<(usize, usize)> {
    let slots = redis::parse_redis_value(bytes).ok()?;
    let host = &ServerAddress::new("seed", 1);
    let asked = view::AskedHost {
        host,
        by_name: true,
    };
    let view = View::read(&slots, asked)?;
    let served = view.primaries().map(|(_, partitions)| partitions.len());
    Some((served.sum(), view.unserved().len()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    use super::*;
    use crate::bus::conformance::redis_server::redis_cluster::RedisCluster;
    use crate::bus::conformance::redis_server::{RedisServer, free_port};
    use crate::bus::redis::options::{Redis, Target};
    use crate::model::partition::Partition;

    const LONG: Duration = Duration::from_secs(20);
    const INTERVAL: Duration = Duration::from_secs(5);

    fn target(url: &str) -> Arc<ClusterTarget> {
        match Redis::at(url).unwrap().target() {
            Ok(Target::Cluster(target)) => target,
            other => panic!("{url}: {other:?}"),
        }
    }

    /// What a server says.
    #[derive(Clone, Copy, Debug)]
    enum Word {
        /// Of a cluster at this epoch: that the server on this port has everything.
        Well(u64, u16),
        Down(u64, u16),
        Silent,
    }

    use Word::{Down, Silent, Well};

    /// A server that says what it is told to say.
    struct Server {
        port: u16,
        word: watch::Sender<Word>,
        accepted: Arc<AtomicUsize>,
        _serving: JoinSet<()>,
    }

    impl Server {
        async fn start(word: Word) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (port, word) = (
                listener.local_addr().unwrap().port(),
                watch::Sender::new(word),
            );
            let (words, accepted) = (word.subscribe(), Arc::<AtomicUsize>::default());
            let (mut serving, count) = (JoinSet::new(), accepted.clone());
            serving.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    count.fetch_add(1, SeqCst);
                    connections.spawn(serve(stream, words.clone()));
                }
            });
            Self {
                port,
                word,
                accepted,
                _serving: serving,
            }
        }

        fn says(&self, word: Word) {
            self.word.send_replace(word);
        }

        fn accepted(&self) -> usize {
            self.accepted.load(SeqCst)
        }
    }

    async fn serve(mut stream: TcpStream, mut words: watch::Receiver<Word>) {
        let mut heard = Vec::new();
        loop {
            while !heard.ends_with(b"INFO\r\n") {
                if stream.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            heard.clear();
            let speaks = |word: &Word| !matches!(word, Silent);
            let Ok(word) = words.wait_for(speaks).await.map(|word| *word) else {
                return;
            };
            let (state, epoch, port) = match word {
                Well(epoch, port) => ("ok", epoch, port),
                Down(epoch, port) => ("fail", epoch, port),
                Silent => unreachable!("it speaks"),
            };
            let info = format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n");
            let answer = format!(
                "*2\r\n+mode\r\n+cluster\r\n*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:{port}\r\n${}\r\n{info}\r\n",
                info.len()
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// A task that asks these, and what it tells.
    struct Asking {
        hints: Arc<Notify>,
        sight: watch::Receiver<Sight>,
        _running: JoinSet<()>,
    }

    impl Asking {
        fn start(servers: &[&Server]) -> Self {
            let seeds = servers
                .iter()
                .map(|server| format!("127.0.0.1:{}", server.port));
            let seeds: Vec<_> = seeds.collect();
            Self::at(&format!("redis-cluster://{}", seeds.join(",")))
        }

        fn at(url: &str) -> Self {
            let hints = Arc::new(Notify::new());
            Self::run(
                Cartographer::new(target(url), hints.clone(), INTERVAL),
                hints,
            )
        }

        /// Which asks once, and then for hints alone.
        fn calm(url: &str) -> Self {
            let hints = Arc::new(Notify::new());
            let mut cartographer = Cartographer::new(target(url), hints.clone(), INTERVAL);
            let long_ago = Instant::now() - Duration::from_secs(120);
            cartographer.refresh = Refresh::new(Duration::from_secs(3600), long_ago);
            Self::run(cartographer, hints)
        }

        fn run(mut cartographer: Cartographer, hints: Arc<Notify>) -> Self {
            let (sight, mut running) = (cartographer.sight(), JoinSet::new());
            running.spawn(async move { cartographer.run().await });
            Self {
                hints,
                sight,
                _running: running,
            }
        }

        async fn until(&mut self, holds: impl FnMut(&Sight) -> bool) -> Sight {
            let told = timeout(LONG, self.sight.wait_for(holds)).await;
            told.expect("it is told").unwrap().clone()
        }

        /// Waits until it is told that this one owns everything.
        async fn led_to(&mut self, port: u16) {
            self.until(|sight| owner(sight) == Some(port) && sight.silence.is_none())
                .await;
        }

        /// Waits for the answer to one more question.
        async fn asks_again(&mut self) {
            let now = Instant::now();
            self.hints.notify_one();
            self.until(|sight| sight.asked.is_some_and(|asked| asked >= now))
                .await;
        }

        async fn silence(&mut self) -> Arc<str> {
            let sight = self.until(|sight| sight.silence.is_some()).await;
            sight.silence.unwrap()
        }
    }

    fn owner(sight: &Sight) -> Option<u16> {
        let owner = sight.view.as_ref()?.owner(Partition::of("all"))?;
        Some(owner.port)
    }

    #[tokio::test]
    async fn one_connection_is_kept_as_long_as_it_is_answered_and_every_hint_is_a_question() {
        let one = Server::start(Well(1, 70)).await;
        let mut asking = Asking::calm(&format!("redis-cluster://127.0.0.1:{}", one.port));
        asking.led_to(70).await;
        one.says(Well(1, 71));
        for _ in 0..5 {
            asking.asks_again().await;
        }
        asking.led_to(71).await;
        assert_eq!(one.accepted(), 1);
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_was_cut_off_is_left_for_another() {
        let [one, other] = [
            Server::start(Well(1, 70)).await,
            Server::start(Silent).await,
        ];
        let mut asking = Asking::start(&[&one, &other]);
        asking.led_to(70).await;
        one.says(Silent);
        other.says(Well(2, 71));
        asking.hints.notify_one();
        asking.led_to(71).await;
        // That which was silent is back, and knows nothing of what happened.
        one.says(Well(1, 70));
        other.says(Down(2, 71));
        asking.hints.notify_one();
        let why = asking.silence().await;
        assert!(why.contains("down") || why.contains("cut off"), "{why}");
        assert_eq!(owner(&asking.sight.borrow()), Some(71), "it holds");
        one.says(Well(2, 71));
        asking.until(|sight| sight.silence.is_none()).await;
    }

    #[tokio::test]
    async fn why_nobody_answers_is_told_of_each_and_it_is_asked_on() {
        let [one, other] = [free_port(), free_port()];
        let mut asking = Asking::at(&format!(
            "redis-cluster://127.0.0.1:{one},127.0.0.1:{other}"
        ));
        let why = asking.silence().await;
        for port in [one, other] {
            assert!(why.contains(&format!("127.0.0.1:{port}: ")), "{why}");
        }
        assert!(why.contains("refused"), "{why}");
        let listener = TcpListener::bind(("127.0.0.1", one)).await.unwrap();
        let word = watch::Sender::new(Well(1, 70));
        let serving = async {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, word.subscribe()).await;
        };
        tokio::select! {
            () = asking.led_to(70) => {}
            () = serving => panic!("it is kept"),
        }
    }

    fn of_cluster(options: &[&str]) -> RedisServer {
        let bus = free_port().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        RedisServer::with_options(&[&cluster, options].concat())
    }

    #[tokio::test]
    async fn a_real_server_is_understood() {
        let server = of_cluster(&[]);
        let mut asking = Asking::at(&format!("redis-cluster://localhost:{}", server.port()));
        assert!(asking.silence().await.contains("cluster is down"));
        assert_eq!(
            server.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]),
            "OK"
        );
        let sight = asking.until(|sight| owner(sight).is_some()).await;
        let view = sight.view.unwrap();
        assert!(view.unserved().is_empty());
        let owner = ServerAddress::new("localhost", server.port());
        assert!(view.nodes().eq([&owner]), "it does not know its own name");
        for partition in Partition::all().step_by(16) {
            let tag = format!("shop:{{{}}}:u:a%7Bb", partition.tag());
            let slot = server.cli(&["CLUSTER", "KEYSLOT", &tag]);
            assert_eq!(slot, partition.slot().to_string());
        }
        for topic in ["u:alice", "all", "r:a%3Ab"] {
            let slot: u16 = server.cli(&["CLUSTER", "KEYSLOT", topic]).parse().unwrap();
            let near = Partition::between(slot / 64 * 64, slot / 64 * 64 + 63);
            assert!(near.eq([Partition::of(topic)]), "{topic}");
        }
    }

    /// T16: neither MOVED nor the end of a connection tells of it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_primary_that_was_cut_off_is_left_though_it_takes_everything() {
        let cluster = RedisCluster::severable(3, 1, &[]);
        let [old, new] = [0, 3].map(|node| cluster.nodes[node].port());
        let partition = Partition::of_slot(5).unwrap();
        let is_at = |sight: &Sight, port| {
            let view = sight.view.as_ref();
            let owner = view.and_then(|view| view.owner(partition));
            owner.is_some_and(|owner| owner.port == port)
        };
        // That which is cut off is the one that is asked.
        let mut asking = Asking::at(&format!("redis-cluster://127.0.0.1:{old}"));
        asking.until(|sight| is_at(sight, old)).await;
        cluster.cut(&[0]);
        asking.until(|sight| is_at(sight, new)).await;
        let publish = format!("SPUBLISH {{{}}}:x y", partition.tag());
        assert_eq!(cluster.ask(0, &publish), "0", "control: it is taken");
        assert!(cluster.is_primary(0), "control: it knows nothing of it");
    }

    /// T23, and whoever may not ask.
    #[tokio::test]
    async fn who_cannot_be_asked_is_told_with_the_fix() {
        let alone = RedisServer::start();
        let sentinel = RedisServer::sentinel("");
        let locked = of_cluster(&["--requirepass", "right"]);
        for (login, port, fix) in [
            ("", alone.port(), "redis://host:port"),
            ("", sentinel.port(), "redis-sentinel://"),
            ("", locked.port(), "redis-cluster://:password@host"),
            (":s3cret@", locked.port(), "user name and password"),
        ] {
            let mut asking = Asking::at(&format!("redis-cluster://{login}127.0.0.1:{port}"));
            let why = asking.silence().await;
            assert!(why.contains(fix) && !why.contains("s3cret"), "{why}");
        }
        let rights = ["ACL", "SETUSER", "app", "on", ">right", "+ping"];
        assert_eq!(locked.cli(&[&["-a", "right"], &rights[..]].concat()), "OK");
        let url = format!("redis-cluster://app:right@127.0.0.1:{}", locked.port());
        let why = Asking::at(&url).silence().await;
        assert!(why.contains("ACL SETUSER app +cluster|slots"), "{why}");
        let url = format!("redis-cluster://:right@127.0.0.1:{}", locked.port());
        let why = Asking::at(&url).silence().await;
        assert!(why.contains("cluster is down"), "it was asked: {why}");
    }
}
