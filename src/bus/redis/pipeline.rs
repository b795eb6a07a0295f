//! The connection that publishes: commands written as bytes, counts read in place, all by the task that
//! owns it. (Measured against a multiplexed connection with a task of its own: see benches/README.md.)

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::advice::{Advice, REPLICA, is_unfit, passes, tells_no_role};
use super::command::{self, ASKING, Appended, Dialect, HELLO};
use super::endpoint::Stream;
use super::past::keeper::{Keeper, NO_RUN, end_of};
use super::past::lately::Ends;
use super::past::{AGAIN, APPEND};
use super::publication::Taken;
use super::resp::{Item, Items, Reply, RespReader};
use super::topology::{Opened, Topology};
use crate::model::history::mark::{Mark, Number, Run};

/// What Redis says to one message: how many received it, or why it was refused.
pub(super) type PublishReply = Result<Taken, RefusedPublish>;

/// Why one PUBLISH was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RefusedPublish {
    /// Another primary of the cluster takes it, or this one later.
    Elsewhere(Arc<str>),
    For(Arc<str>),
    /// It is kept, and whoever is there did not hear it.
    Kept(Arc<str>),
    /// Redis takes nothing for now: it was not done.
    Away(Arc<str>),
    /// Redis does not know the script: nothing was done.
    Unknown,
}

impl RefusedPublish {
    pub(super) fn reason(self) -> Arc<str> {
        match self {
            Self::Elsewhere(reason)
            | Self::For(reason)
            | Self::Kept(reason)
            | Self::Away(reason) => reason,
            Self::Unknown => "redis has forgotten the script that keeps messages".into(),
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }
}

/// Why a connection is of no use, or no longer.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) on_replica: bool,
    pub(crate) reason: Arc<str>,
}

impl<T: Into<Arc<str>>> From<T> for Unusable {
    fn from(reason: T) -> Self {
        Self {
            on_replica: false,
            reason: reason.into(),
        }
    }
}

/// What a clock says of a run that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its last number that is known. None, where the clock does not know the run.
    pub(super) at: Option<Number>,
    /// The one that is given next.
    pub(super) now: Number,
}

/// Memory that is kept between batches; so much is written at once.
const KEPT: usize = 256 * 1024;

pub(crate) struct Pipeline {
    stream: Pin<Box<dyn Stream>>,
    /// The topology's when it was opened.
    pub(super) route: u64,
    reader: RespReader,
    output: BytesMut,
    /// Something was written, and may not have left.
    is_unflushed: bool,
    advice: Arc<Advice>,
    dialect: Dialect,
    /// Replies that are still to come.
    owed: usize,
    /// What the first of them answers, where that is no PUBLISH.
    first: Option<First>,
    /// Those that answer several messages at once, in order.
    batches: VecDeque<AnsweredMessages>,
    /// Who keeps, once it is prepared for that.
    keeper: Option<Keeper>,
    /// It was asked whether it keeps.
    is_asked: bool,
    /// What was kept, until it is looked at.
    taken: Vec<AcknowledgedNumber>,
    /// How many were kept again that were lost, until it is looked at.
    again: u64,
    /// What is kept may be kept again.
    pub(super) spools: bool,
    /// It is of a slot that is still on its way there.
    pub(super) asks: bool,
    /// Why that is refused, until it is looked at.
    asks_nobody: Option<Arc<str>>,
}

/// Of which messages a reply tells, or that they were not sent at all.
#[derive(Debug)]
struct AnsweredMessages {
    /// Behind how many replies.
    at: usize,
    clock: Arc<str>,
    run: Option<Run>,
    messages: Messages,
    refused: Option<Arc<str>>,
}

#[derive(Debug)]
enum Messages {
    /// None: it is asked to take the next.
    Asking,
    /// Of each: how far its number is from the first, and whether it is kept.
    New(Vec<(u64, bool)>),
    /// Of each: whether it is kept, and whether it was lost.
    Again(Vec<(bool, bool)>),
}

impl Messages {
    fn len(&self) -> usize {
        match self {
            Self::Asking => 0,
            Self::New(messages) => messages.len(),
            Self::Again(messages) => messages.len(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Login,
    /// Whether the server is a replica.
    Role,
}

impl Pipeline {
    /// Logs in, and makes sure that this is no replica.
    pub(crate) async fn open(topology: &Topology, advice: &Arc<Advice>) -> Result<Self, Unusable> {
        let opened = topology.connect().await;
        let Opened { dialed, route } = opened.map_err(|error| error.to_string())?;
        let auth = dialed.auth();
        let mut pipeline = Self::on(dialed.stream, route, advice.clone(), topology.dialect());
        if let Some(auth) = auth {
            pipeline.output.extend_from_slice(&auth);
            pipeline.owed = 1;
            pipeline.first = Some(First::Login);
            let mut replies = Vec::new();
            pipeline.exchange(&mut replies).await?;
            let refused = replies.into_iter().find_map(Result::err);
            if let Some(refused) = refused {
                return Err(refused.reason().into());
            }
        }
        pipeline.ask_role();
        pipeline.exchange(&mut Vec::new()).await?;
        Ok(pipeline)
    }

    #[cfg(test)]
    pub(super) fn over(stream: tokio::io::DuplexStream) -> Self {
        let namespace = crate::model::topic::Namespace::new("x").expect("a good name");
        let advice = Advice::new(None, &namespace, Dialect::Plain);
        Self::on(Box::pin(stream), 0, Arc::new(advice), Dialect::Plain)
    }

    /// On which nothing was said yet.
    fn on(stream: Pin<Box<dyn Stream>>, route: u64, advice: Arc<Advice>, dialect: Dialect) -> Self {
        Self {
            stream,
            route,
            reader: RespReader::of_values(KEPT),
            output: BytesMut::new(),
            is_unflushed: false,
            advice,
            dialect,
            owed: 0,
            first: None,
            batches: VecDeque::new(),
            keeper: None,
            is_asked: false,
            taken: Vec::new(),
            again: 0,
            spools: false,
            asks: false,
            asks_nobody: None,
        }
    }

    /// The connection, if it still stands, as far as the kernel knows.
    pub(crate) fn alive(&mut self) -> Option<&mut Self> {
        // Redis says nothing unasked but its farewell.
        let said = self.stream.read_buf(self.reader.space()).now_or_never();
        said.is_none().then_some(self)
    }

    /// Makes the next [`exchange`](Self::exchange) fail if this is a replica by now. To be called before
    /// anything is added to it.
    pub(crate) fn ask_role(&mut self) {
        self.output.put_slice(HELLO);
        self.owed += 1;
        self.first = Some(First::Role);
    }

    /// Adds a PUBLISH to what [`exchange`](Self::exchange) writes. Whatever is much is written already, so
    /// that a message to thousands of users is not there thousands of times. After an error, or cancelled,
    /// the connection is useless.
    pub(crate) async fn add(
        &mut self,
        channel: &str,
        publication: (&[u8], &[u8]),
    ) -> Result<(), Unusable> {
        self.put(channel, publication);
        self.owed += 1;
        if self.output.len() >= KEPT {
            self.write().await?;
        }
        Ok(())
    }

    /// Adds a PUBLISH to what [`pump`](Self::pump) writes.
    pub(super) fn put(&mut self, channel: &str, publication: (&[u8], &[u8])) {
        command::publish(&mut self.output, self.dialect, channel, publication);
    }

    /// Whether so little waits to be written that more may be added.
    pub(super) fn has_room(&self) -> bool {
        self.output.len() < KEPT
    }

    /// Whether all that was added has left.
    pub(super) fn is_written(&self) -> bool {
        self.output.is_empty() && !self.is_unflushed
    }

    /// Whether what is refused here is refused for good.
    pub(super) fn is_of_one_primary(&self) -> bool {
        self.dialect == Dialect::Plain
    }

    /// Reads what is there, and writes what was [put](Self::put): until something came, or all has left. Cancelled it has lost
    /// nothing; after an error, of which what came before is told, the connection is useless.
    pub(super) async fn pump(
        &mut self,
        replies: &mut VecDeque<PublishReply>,
    ) -> Result<(), Unusable> {
        poll_fn(|context| {
            // Neither waits for the other: a server may read no more before its answers are read.
            let read = self.poll_read(context, replies)?;
            let written = self.poll_write(context)?;
            match read.is_ready() || written == Poll::Ready(true) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        replies: &mut VecDeque<PublishReply>,
    ) -> Poll<Result<(), Unusable>> {
        let read = pin!(self.stream.read_buf(self.reader.space())).poll(context);
        match ready!(read) {
            Ok(0) => return Poll::Ready(Err("redis closed the connection".into())),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(error.to_string().into())),
        }
        let (advice, dialect, mut out_of_step) = (&self.advice, self.dialect, false);
        let read = self.reader.read(usize::MAX, |reply| match reply {
            Reply::Integer(received) => replies.push_back(Ok(received.into())),
            Reply::Error(words) => replies.push_back(Err(refused(words, advice, dialect))),
            _ => out_of_step = true,
        });
        Poll::Ready(match read.is_err() || out_of_step {
            true => Err(BROKEN.into()),
            false => Ok(()),
        })
    }

    /// Whether there was anything to write, of which nothing is left.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Unusable>> {
        while !self.output.is_empty() {
            self.is_unflushed = true;
            let written = ready!(self.stream.as_mut().poll_write(context, &self.output));
            match written.map_err(|error| error.to_string())? {
                0 => return Poll::Ready(Err("redis closed the connection".into())),
                count => self.output.advance(count),
            }
        }
        if !self.is_unflushed {
            return Poll::Ready(Ok(false));
        }
        let flushed = ready!(self.stream.as_mut().poll_flush(context));
        flushed.map_err(|error| error.to_string())?;
        self.is_unflushed = false;
        if self.output.capacity() > KEPT {
            self.output = BytesMut::new();
        }
        Poll::Ready(Ok(true))
    }

    /// Who keeps what is [appended](Self::append); none before it is [prepared](Self::prepare), and when it has forgotten how.
    pub(super) fn keeper(&self) -> Option<Keeper> {
        self.keeper
    }

    /// Whether it was asked to keep since it was opened.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// Makes it keep; why it cannot. To be called before anything is added. After an error, or cancelled, the connection is
    /// useless.
    pub(super) async fn prepare(&mut self) -> Result<Result<Keeper, Arc<str>>, Unusable> {
        command::prepare(&mut self.output, APPEND.text);
        if self.spools {
            command::learn(&mut self.output, AGAIN.text);
        }
        let mut said = Vec::new();
        let advice = self.advice.clone();
        self.ask(3 + usize::from(self.spools), |reply| {
            said.push(match reply {
                Reply::Bulk(text) => Ok(String::from_utf8_lossy(text).into_owned()),
                Reply::Error(words) => Err(advice.on(&String::from_utf8_lossy(words))),
                _ => Ok(String::new()),
            });
        })
        .await?;
        let said: Result<Vec<String>, Arc<str>> = said.into_iter().collect();
        let keeper = said.and_then(|said| {
            let keeper = Keeper::read(&said[0], &said[1]);
            keeper.ok_or_else(|| NO_RUN.into())
        });
        self.keeper = keeper.as_ref().ok().copied();
        self.is_asked = true;
        Ok(keeper)
    }

    /// Where other runs ended by their clocks, which begin the present one if nobody has: what those gave beyond is lost. None,
    /// where one says nothing of it; and why, of the last. In one round trip; used as [`prepare`](Self::prepare) is.
    pub(super) async fn ask_ends(
        &mut self,
        asked: &[(Arc<str>, Run)],
    ) -> Result<(Vec<Option<Ended>>, Option<Arc<str>>), Unusable> {
        let run = self.keeper.map(|keeper| keeper.run);
        let run = run.as_ref().map_or("", Run::as_str);
        let (digest, dialect) = (&APPEND.digest, self.dialect);
        for (clock, _) in asked {
            command::append(&mut self.output, dialect, digest, (clock, run), &[]);
            command::hgetall(&mut self.output, clock);
        }
        let (mut ends, mut refused) = (vec![None; asked.len()], None);
        let (mut heard, mut now) = (0, None);
        let advice = self.advice.clone();
        self.ask(2 * asked.len(), |reply| {
            let (of, is_first) = (heard / 2, heard % 2 == 0);
            heard += 1;
            match reply {
                Reply::Array(told) if is_first => now = number_of(told),
                Reply::Array(fields) => {
                    let at = end_of(asked[of].1, fields);
                    ends[of] = now.take().map(|now| Ended { at, now });
                }
                Reply::Error(words) => {
                    now = None;
                    refused = Some(advice.on(&String::from_utf8_lossy(words)));
                }
                _ => now = None,
            }
        })
        .await?;
        Ok((ends, refused))
    }

    /// The same, of whoever needs all of them.
    pub(super) async fn ends_of(
        &mut self,
        asked: &BTreeSet<(Arc<str>, Run)>,
    ) -> Result<Ends, Unusable> {
        let asked: Vec<_> = asked.iter().cloned().collect();
        match self.ask_ends(&asked).await? {
            (_, Some(reason)) => Err(reason.into()),
            (ends, None) => {
                let ends = ends.into_iter().map(|end| end.and_then(|end| end.at));
                Ok(asked.into_iter().zip(ends).collect())
            }
        }
    }

    /// Writes what is there and hears so many replies.
    async fn ask(&mut self, replies: usize, mut on: impl FnMut(Reply<'_>)) -> Result<(), Unusable> {
        self.write().await?;
        let flushed = self.stream.flush().await;
        flushed.map_err(|error| error.to_string())?;
        let mut heard = 0;
        while heard < replies {
            match self.stream.read_buf(self.reader.space()).await {
                Ok(0) => return Err("redis closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string().into()),
            }
            let read = self.reader.read(usize::MAX, |reply| {
                heard += 1;
                on(reply);
            });
            if read.is_err() || heard > replies {
                return Err(BROKEN.into());
            }
        }
        Ok(())
    }

    /// Adds messages that are kept to what [`exchange`](Self::exchange) writes, of one clock. After an error, or cancelled, the
    /// connection is useless.
    pub(super) async fn append(
        &mut self,
        clock: &Arc<str>,
        messages: &[Appended<'_>],
    ) -> Result<(), Unusable> {
        let run = self.keeper.map(|keeper| keeper.run);
        let spoken = run.as_ref().map_or("", Run::as_str);
        let (digest, dialect) = (&APPEND.digest, self.dialect);
        if self.asks {
            self.output.put_slice(ASKING);
            self.expect(clock, None, Messages::Asking, None);
        }
        command::append(&mut self.output, dialect, digest, (clock, spoken), messages);
        let mut from_first = 0;
        let numbered = messages.iter().enumerate().map(|(n, message)| {
            from_first += u64::from(n > 0 && !message.same_number);
            (from_first, message.list.is_some())
        });
        let messages = Messages::New(numbered.collect());
        self.expect(clock, run, messages, None);
        if self.output.len() >= KEPT {
            self.write().await?;
        }
        Ok(())
    }

    /// The same of what may be there already, with a higher number than that; and of where it was before.
    pub(super) async fn append_again(
        &mut self,
        clock: &Arc<str>,
        since: Number,
        messages: &[(Appended<'_>, String)],
    ) -> Result<(), Unusable> {
        let run = self.keeper.map(|keeper| keeper.run);
        let spoken = run.as_ref().map_or("", Run::as_str);
        let (digest, dialect) = (&AGAIN.digest, self.dialect);
        let place = (&**clock, spoken, since);
        command::append_again(&mut self.output, dialect, digest, place, messages);
        let again = messages.iter();
        // A union is one message, kept of several topics.
        let again = again.map(|(message, formerly)| {
            let was_lost = !formerly.is_empty() && !message.same_number;
            (message.list.is_some(), was_lost)
        });
        let again = Messages::Again(again.collect());
        self.expect(clock, run, again, None);
        if self.output.len() >= KEPT {
            self.write().await?;
        }
        Ok(())
    }

    /// How many of what was lost were kept again, since it was last looked at.
    pub(super) fn take_again(&mut self) -> u64 {
        std::mem::take(&mut self.again)
    }

    /// Why it may not be asked to keep what is on its way there.
    pub(super) fn take_asks_nobody(&mut self) -> Option<Arc<str>> {
        self.asks_nobody.take()
    }

    /// Has [`exchange`](Self::exchange) say in their place that so many messages are refused, which are not sent.
    pub(super) fn refuse(&mut self, clock: &Arc<str>, messages: usize, reason: &Arc<str>) {
        let messages = Messages::New(vec![(0, false); messages]);
        self.expect(clock, None, messages, Some(reason.clone()));
    }

    fn expect(
        &mut self,
        clock: &Arc<str>,
        run: Option<Run>,
        messages: Messages,
        refused: Option<Arc<str>>,
    ) {
        let (at, count) = (self.owed, messages.len());
        let clock = clock.clone();
        self.batches.push_back(AnsweredMessages {
            at,
            clock,
            run,
            messages,
            refused,
        });
        self.owed += count;
    }

    /// What is kept since it was last looked at, in order.
    pub(super) fn take_kept(&mut self) -> Vec<AcknowledgedNumber> {
        std::mem::take(&mut self.taken)
    }

    async fn write(&mut self) -> Result<(), Unusable> {
        let written = self.stream.write_all(&self.output).await;
        self.output.clear();
        if self.output.capacity() > KEPT {
            self.output = BytesMut::new();
        }
        Ok(written.map_err(|error| error.to_string())?)
    }

    /// Writes what was added and reads the replies in its order, into what is empty. A reply of another kind than was
    /// asked for belongs to another command. After an error, or cancelled, the connection is useless.
    pub(super) async fn exchange(
        &mut self,
        replies: &mut Vec<PublishReply>,
    ) -> Result<(), Unusable> {
        self.write().await?;
        self.stream
            .flush()
            .await
            .map_err(|error| error.to_string())?;
        let mut batches = std::mem::take(&mut self.batches);
        answer_refused(&mut batches, replies);
        let (owed, first) = (std::mem::take(&mut self.owed), self.first.take());
        let (mut unfit, mut out_of_step) = (None, false);
        while replies.len() < owed {
            match self.stream.read_buf(self.reader.space()).await {
                Ok(0) => return Err("redis closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string().into()),
            }
            let read = self.reader.read(usize::MAX, |reply| {
                if let Some(batch) = next(&mut batches, replies.len()) {
                    if let (Messages::Asking, Reply::Error(words)) = (&batch.messages, &reply) {
                        let words = String::from_utf8_lossy(words);
                        self.asks_nobody = Some(self.advice.on(&words));
                        return;
                    }
                    let kept = (&mut self.taken, &mut self.again);
                    let told = batch.answer(reply, &self.advice, self.dialect, kept);
                    out_of_step |= told.is_none();
                    replies.extend(told.into_iter().flatten());
                    answer_refused(&mut batches, replies);
                    return;
                }
                let asked = first.filter(|_| replies.is_empty());
                replies.push(match (asked, reply) {
                    (_, Reply::Error(words)) => Err(refused(words, &self.advice, self.dialect)),
                    (None, Reply::Integer(received)) => Ok(received.into()),
                    (Some(First::Login), Reply::Other) => Ok(Taken::default()),
                    (Some(First::Role), Reply::Hello { role, mode }) => {
                        unfit = is_unfit(self.dialect, role, mode);
                        Ok(Taken::default())
                    }
                    _ => {
                        out_of_step = true;
                        Ok(Taken::default())
                    }
                });
                answer_refused(&mut batches, replies);
            });
            if read.is_err() || out_of_step || replies.len() > owed {
                return Err(BROKEN.into());
            }
        }
        if replies.contains(&Err(RefusedPublish::Unknown)) {
            self.keeper = None;
        }
        if first == Some(First::Role)
            && let Err(refused) = replies.remove(0)
        {
            let words = refused.reason();
            if !tells_no_role(&words) {
                return Err(words.into());
            }
        }
        match unfit {
            Some(reason) => Err(Unusable {
                on_replica: reason == REPLICA,
                reason: reason.into(),
            }),
            None => Ok(()),
        }
    }
}

pub(super) const BROKEN: &str = "redis broke its own protocol";

/// How the reply of a script begins to a message that is kept and was not published.
const KEPT_ALL_THE_SAME: &[u8] = b"KEPT ";

fn refused(words: &[u8], advice: &Advice, dialect: Dialect) -> RefusedPublish {
    let words = String::from_utf8_lossy(words);
    let reason = advice.on(&words);
    match dialect.is_elsewhere(&words) {
        true => RefusedPublish::Elsewhere(reason),
        false => RefusedPublish::For(reason),
    }
}

/// A number, by which run of which clock.
type AcknowledgedNumber = (Run, Arc<str>, Number);

/// The same of messages that may have been there already.
fn answer_again(
    (run, clock): (Option<Run>, &Arc<str>),
    messages: Vec<(bool, bool)>,
    mut items: Items<'_>,
    advice: &Advice,
    (taken, again): (&mut Vec<AcknowledgedNumber>, &mut u64),
) -> Option<Vec<PublishReply>> {
    let mut answers = Vec::with_capacity(messages.len());
    for (is_kept, was_lost) in messages {
        let (number, heard) = match (items.next()?, items.next()?) {
            (Item::Bulk(number), Item::Integer(heard)) => (Number::read(number)?, heard),
            (Item::Error(words), _) => {
                answers.push(Err(refused_alone(words, advice)));
                continue;
            }
            _ => return None,
        };
        *again += u64::from(was_lost && heard > 0);
        if let Some(run) = run.filter(|_| is_kept) {
            taken.push((run, clock.clone(), number));
        }
        let mark = run.map(|run| Mark { run, number });
        let receivers = heard.saturating_sub(1);
        answers.push(Ok(Taken { receivers, mark }));
    }
    Some(answers)
}

/// Of one message of a script.
fn refused_alone(words: &[u8], advice: &Advice) -> RefusedPublish {
    match words.strip_prefix(KEPT_ALL_THE_SAME) {
        Some(words) => RefusedPublish::Kept(advice.on(&String::from_utf8_lossy(words))),
        None => RefusedPublish::For(advice.on(&String::from_utf8_lossy(words))),
    }
}

/// Whether these are fields and values; a script answers with a number alone.
fn number_of(mut items: Items<'_>) -> Option<Number> {
    match items.next()? {
        Item::Bulk(number) => Number::read(number),
        _ => None,
    }
}

/// The batch that is answered behind so many replies.
fn next(batches: &mut VecDeque<AnsweredMessages>, at: usize) -> Option<AnsweredMessages> {
    match batches.front() {
        Some(batch) if batch.at == at => batches.pop_front(),
        _ => None,
    }
}

/// Says of what was not sent that it is refused, where its turn has come.
fn answer_refused(batches: &mut VecDeque<AnsweredMessages>, replies: &mut Vec<PublishReply>) {
    while batches.front().is_some_and(|batch| batch.refused.is_some())
        && let Some(batch) = next(batches, replies.len())
        && let Some(reason) = batch.refused
    {
        let refused = Err(RefusedPublish::For(reason));
        replies.extend(std::iter::repeat_n(refused, batch.messages.len()));
    }
}

impl AnsweredMessages {
    /// What the reply says to each message; none, where it answers something else.
    fn answer(
        self,
        reply: Reply<'_>,
        advice: &Advice,
        dialect: Dialect,
        (taken, again): (&mut Vec<AcknowledgedNumber>, &mut u64),
    ) -> Option<Vec<PublishReply>> {
        let mut items = match reply {
            Reply::Array(items) => items,
            Reply::Other if matches!(self.messages, Messages::Asking) => return Some(Vec::new()),
            Reply::Error(words) => {
                let refused = match refused(words, advice, dialect) {
                    _ if words.starts_with(b"NOSCRIPT") => RefusedPublish::Unknown,
                    RefusedPublish::For(reason) if passes(words) => RefusedPublish::Away(reason),
                    refused => refused,
                };
                return Some(vec![Err(refused); self.messages.len()]);
            }
            _ => return None,
        };
        let mut answers = Vec::with_capacity(self.messages.len());
        let messages = match self.messages {
            Messages::Asking => return None,
            Messages::New(messages) => messages,
            Messages::Again(messages) => {
                let of = (self.run, &self.clock);
                return answer_again(of, messages, items, advice, (taken, again));
            }
        };
        let Item::Bulk(first) = items.next()? else {
            return None;
        };
        let first = Number::read(first)?;
        for (from_first, is_kept) in messages {
            let number = Number(first.0 + from_first);
            answers.push(match items.next()? {
                Item::Integer(receivers) => {
                    if let Some(run) = self.run.filter(|_| is_kept) {
                        taken.push((run, self.clock.clone(), number));
                    }
                    let mark = self.run.map(|run| Mark { run, number });
                    Ok(Taken { receivers, mark })
                }
                Item::Error(words) => Err(refused_alone(words, advice)),
                Item::Bulk(_) | Item::Other => return None,
            });
        }
        Some(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PUBLISH, with the question for the role before it or not, and what Redis says.
    async fn publish(asks: bool, answers: &[u8]) -> Result<Vec<PublishReply>, Arc<str>> {
        let (stream, mut server) = tokio::io::duplex(1024);
        let mut pipeline = Pipeline::over(stream);
        if asks {
            pipeline.ask_role();
        }
        pipeline.add("x", (b"", b"hello")).await.unwrap();
        server.write_all(answers).await.unwrap();
        let mut replies = Vec::new();
        let exchanged = pipeline.exchange(&mut replies).await;
        exchanged.map(|()| replies).map_err(|error| error.reason)
    }

    #[tokio::test]
    async fn what_answers_another_command_is_not_taken_for_a_count() {
        const ROLE: &str = "*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
        let good = [
            (false, ":2\r\n".to_owned()),
            (true, format!("{ROLE}:2\r\n")),
        ];
        for (asks, answers) in good {
            assert_eq!(
                publish(asks, answers.as_bytes()).await,
                Ok(vec![Ok(2.into())])
            );
        }
        for (asks, answers) in [
            (false, "+OK\r\n".to_owned()),
            (false, ROLE.to_owned()),
            (true, ":2\r\n:2\r\n".to_owned()),
            (true, format!(":2\r\n{ROLE}")),
            (true, format!("{ROLE}+OK\r\n")),
        ] {
            let error = publish(asks, answers.as_bytes()).await.unwrap_err();
            assert!(error.contains("protocol"), "{answers}: {error}");
        }
    }

    #[tokio::test]
    async fn a_message_to_thousands_is_written_in_pieces() {
        const USERS: usize = 200;
        let (stream, mut server) = tokio::io::duplex(1024);
        let mut pipeline = Pipeline::over(stream);
        let envelope = vec![b'x'; 64 * 1024];
        let mut expected = BytesMut::new();
        for user in 0..USERS {
            command::publish(
                &mut expected,
                Dialect::Plain,
                &user.to_string(),
                (b"", &envelope),
            );
        }
        let mut most = 0;
        let publishing = async {
            for user in 0..USERS {
                pipeline
                    .add(&user.to_string(), (b"", &envelope))
                    .await
                    .unwrap();
                most = most.max(pipeline.output.capacity());
            }
            let mut replies = Vec::new();
            pipeline.exchange(&mut replies).await.unwrap();
            replies
        };
        let serving = async {
            let mut read = vec![0; expected.len()];
            server.read_exact(&mut read).await.unwrap();
            let answers = ":1\r\n".repeat(USERS);
            server.write_all(answers.as_bytes()).await.unwrap();
            read
        };
        let (replies, read) = tokio::join!(publishing, serving);
        assert_eq!(replies, vec![Ok(1.into()); USERS]);
        assert!(read == expected, "all of it, in order");
        assert!(most <= 4 * KEPT, "{most} bytes at once");
    }
}
