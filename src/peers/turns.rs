//! Where messages are kept, they reach this node's sockets when they come back from the bus. So what is done to sockets waits for its
//! turn among them as well: a close must not overtake what was sent before it.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::bus::Confirmation;
use crate::bus::control::Ask;
use crate::bus::scope::Selection;
use crate::local::Sockets;

/// How many sockets here it concerned, and what it takes until it is done.
pub(super) type CarriedOut = (usize, Confirmation);

/// Commands of this node that are to be carried out here, by the number of their question.
#[derive(Debug)]
pub(super) struct Turns {
    sockets: Sockets,
    open: Mutex<HashMap<u64, CommandTurn>>,
}

#[derive(Debug)]
struct CommandTurn {
    selection: Selection,
    what: Ask,
    done: oneshot::Sender<CarriedOut>,
}

impl Turns {
    pub(super) fn new(sockets: Sockets) -> Self {
        let open = Mutex::default();
        Self { sockets, open }
    }

    /// It is about to be published.
    pub(super) fn open(
        &self,
        id: u64,
        selection: &Selection,
        what: &Ask,
    ) -> oneshot::Receiver<CarriedOut> {
        let (done, carried_out) = oneshot::channel();
        let turn = CommandTurn {
            selection: selection.clone(),
            what: what.clone(),
            done,
        };
        self.open.lock().insert(id, turn);
        carried_out
    }

    /// It has come back, or will not: now it is carried out, if it was not before. A Close leaves with the next flush. Whether it was
    /// its turn.
    pub(super) fn come(&self, id: u64) -> bool {
        let turn = self.open.lock().remove(&id);
        let Some(CommandTurn {
            selection,
            what,
            done,
        }) = turn
        else {
            return false;
        };
        let carried_out = self.sockets.carry_out_own(&selection.scope(), &what);
        // Whoever commanded may have given up.
        let _ = done.send(carried_out);
        true
    }
}
