//! What a primary refuses since its keys have left already, of a slot that is on its way: it is kept where they are.
//!
//! Who owns the slot next takes a command for it if it was asked to, one at a time. Nobody hears there yet what is published so: it is
//! read when the slot has arrived, as all that was missed in the move.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::address::ServerAddress;
use super::advice::Advice;
use super::past::append::AppendState;
use super::pipeline::{Pipeline, PublishReply, RefusedPublish, Unusable};
use super::publication::Publication;
use super::topology::Topology;

/// The connection to it, as long as there is something to be asked.
#[derive(Default)]
pub(super) struct Asked {
    open: Option<(ServerAddress, Pipeline)>,
    /// It could not be asked, and is not until then: everybody else waits while it is tried.
    failed: Option<(ServerAddress, Instant)>,
}

/// So long it may take until it can be asked.
const OPENING: Duration = Duration::from_millis(500);
/// Nothing waits for longer than without it: when the slot has arrived it is kept there anyhow.
const PAUSE: Duration = Duration::from_secs(10);

impl Asked {
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    async fn to(
        &mut self,
        place: &ServerAddress,
        topology: &Topology,
        advice: &Arc<Advice>,
    ) -> Result<Pipeline, Arc<str>> {
        if let Some((at, open)) = self.open.take()
            && at == *place
        {
            return Ok(open);
        }
        let until = self.failed.as_ref().filter(|(at, _)| at == place);
        if until.is_some_and(|(_, until)| Instant::now() < *until) {
            return Err("it could not be asked a moment ago".into());
        }
        let opened = open(place, topology, advice).await;
        let failed = opened
            .is_err()
            .then(|| (place.clone(), Instant::now() + PAUSE));
        self.failed = failed;
        opened
    }

    /// Has these kept there, in order, and hears the replies. Why it cannot be asked for that, where it cannot: then none was sent.
    pub(super) async fn keep(
        &mut self,
        place: &ServerAddress,
        publications: &[Publication],
        keeping: &mut AppendState,
        replies: &mut Vec<PublishReply>,
        (topology, advice): (&Topology, &Arc<Advice>),
    ) -> Result<Option<Arc<str>>, Unusable> {
        let mut open = match self.to(place, topology, advice).await {
            Ok(open) => open,
            Err(reason) => {
                let parts = publications.iter().map(|one| one.part().len()).sum();
                let refused = || Err(RefusedPublish::Elsewhere(ON_ITS_WAY.into()));
                replies.extend(std::iter::repeat_with(refused).take(parts));
                return Ok(Some(reason));
            }
        };
        keeping.write(&mut open, publications, None).await?;
        open.exchange(replies).await?;
        // By another process than those that are looked after here.
        open.take_kept();
        let refusal = open.take_asks_nobody();
        // Where it has forgotten the script, another one learns it.
        self.open = open.keeper().map(|_| (place.clone(), open));
        Ok(refusal)
    }
}

/// As Redis says it of keys that are not all there.
const ON_ITS_WAY: &str = "TRYAGAIN";

async fn open(
    place: &ServerAddress,
    topology: &Topology,
    advice: &Arc<Advice>,
) -> Result<Pipeline, Arc<str>> {
    let other = topology.beside(place).ok_or("nobody says where that is")?;
    let opening = async {
        let mut open = Pipeline::open(&other, advice).await?;
        Ok::<_, Unusable>(open.prepare().await?.map(|_| open))
    };
    // Everybody else waits meanwhile.
    let opened = timeout(OPENING, opening).await;
    let opened = opened.map_err(|_| "it accepts no connection in time")?;
    let mut open = opened.map_err(|unusable| unusable.reason)??;
    open.asks = true;
    Ok(open)
}
