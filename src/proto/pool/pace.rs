//! A ceiling of REGISTERs a second for all registrations together (D16): requests take turns.

use super::*;
use crate::config::ceiling;
use std::num::NonZeroU32;

/// Who waits for a turn, in which order
#[derive(Debug)]
pub(super) struct Pace {
    /// From one request to the next
    interval: Duration,
    /// When the next one may go out
    next_at: Option<Instant>,
    waiting: HashMap<RegistrationId, Waits>,
    /// By [`Rank`], each in the order they came
    queues: [BTreeSet<(u64, RegistrationId)>; 4],
    /// Those whose turn it was while the window of their target was full
    parked: HashMap<SocketAddr, BTreeSet<(Rank, u64, RegistrationId)>>,
    came: u64,
    /// Refreshes that went before beginners, since the last beginner
    preferred: u8,
}

#[derive(Debug)]
struct Waits {
    rank: Rank,
    place: u64,
    turn: Turn,
    parked: Option<SocketAddr>,
}

/// What one does when it is its turn
#[derive(Debug)]
pub(super) enum Turn {
    /// Asks for a flow, and sends where it is up
    Open(Asker, Opening),
    /// Sends on the flow that it has waited for
    Ready(Asker, FlowId),
    /// Sends once more what was not answered
    Resend(FlowId, Bytes),
}

/// Whose turn comes first
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// An attempt that has begun: its nonce grows old, and its time is limited (D3)
    GoesOn,
    /// What is not to register: its time is limited (D21), and a person waits for it
    Leaves,
    /// A lease ends otherwise
    Renews,
    /// Nothing is lost yet
    Begins,
}

/// Of so many turns one is a beginner's, so that nobody waits for ever where the ceiling is too low for all refreshes
const ONE_BEGINS: u8 = 4;

impl Pace {
    fn new(a_second: NonZeroU32) -> Self {
        Self {
            interval: ceiling::interval(a_second),
            next_at: None,
            waiting: HashMap::new(),
            queues: Default::default(),
            parked: HashMap::new(),
            came: 0,
            preferred: 0,
        }
    }

    /// One that waits already keeps its place, unless the new one is better.
    fn line_up(&mut self, now: Instant, id: RegistrationId, rank: Rank, turn: Turn) {
        self.next_at.get_or_insert(now);
        let before = self.take(id).filter(|waits| waits.rank <= rank);
        let (rank, place) = match before {
            Some(waits) => (waits.rank, waits.place),
            None => {
                self.came += 1;
                (rank, self.came)
            }
        };
        self.queues[rank as usize].insert((place, id));
        let parked = None;
        self.waiting.insert(
            id,
            Waits {
                rank,
                place,
                turn,
                parked,
            },
        );
    }

    fn take(&mut self, id: RegistrationId) -> Option<Waits> {
        let waits = self.waiting.remove(&id)?;
        match waits.parked {
            None => drop(self.queues[waits.rank as usize].remove(&(waits.place, id))),
            Some(address) => {
                if let Some(parked) = self.parked.get_mut(&address) {
                    parked.remove(&(waits.rank, waits.place, id));
                    if parked.is_empty() {
                        self.parked.remove(&address);
                    }
                }
            }
        }
        Some(waits)
    }

    pub(super) fn remove(&mut self, id: RegistrationId) {
        self.take(id);
    }

    /// Its turn comes once there is a place in the window of its target; it keeps its own among those who wait for that.
    fn park(&mut self, id: RegistrationId, waits: Waits, address: SocketAddr) {
        let place = (waits.rank, waits.place, id);
        self.parked.entry(address).or_default().insert(place);
        let parked = Some(address);
        self.waiting.insert(id, Waits { parked, ..waits });
    }

    pub(super) fn has_parked(&self, address: SocketAddr) -> bool {
        self.parked
            .get(&address)
            .is_some_and(|parked| !parked.is_empty())
    }

    /// There are so many places in the window of a target: the first of each rank are back among those who wait for turns.
    pub(super) fn unpark(&mut self, address: SocketAddr, places: u32) {
        let Some(parked) = self.parked.get(&address) else {
            return;
        };
        let ranks = [Rank::GoesOn, Rank::Leaves, Rank::Renews, Rank::Begins];
        let first = ranks.into_iter().flat_map(|rank| {
            let of_rank = parked.iter().skip_while(move |(one, ..)| *one < rank);
            let of_rank = of_rank.take_while(move |(one, ..)| *one == rank);
            of_rank.take(places as usize)
        });
        for (rank, place, id) in first.copied().collect::<Vec<_>>() {
            if let Some(waits) = self.take(id) {
                self.queues[rank as usize].insert((place, id));
                let parked = None;
                self.waiting.insert(id, Waits { parked, ..waits });
            }
        }
    }

    /// Not interested in the answer any more.
    pub(super) fn cancel(&mut self, asker: Asker) {
        let waits = self.waiting.get(&asker.id).map(|waits| &waits.turn);
        if matches!(waits, Some(Turn::Open(by, _) | Turn::Ready(by, _)) if *by == asker) {
            self.remove(asker.id);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        // What is parked waits for a place in a window.
        let empty = self.queues.iter().all(BTreeSet::is_empty);
        self.next_at.filter(|_| !empty)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn next(&mut self) -> Option<(RegistrationId, Waits)> {
        let [on, leaves, renews, begins] = &self.queues;
        let urgent = on.first().or_else(|| leaves.first());
        let first = urgent.copied().or_else(|| {
            let yields = self.preferred + 1 >= ONE_BEGINS || renews.is_empty();
            let begins = begins.first().filter(|_| yields);
            self.preferred = match begins {
                Some(_) => 0,
                None => (self.preferred + 1).min(ONE_BEGINS),
            };
            begins.or_else(|| renews.first()).copied()
        });
        let (_, id) = first?;
        Some((id, self.take(id)?))
    }

    fn sent(&mut self, now: Instant) {
        self.next_at = Some(now + self.interval);
    }

    /// Takes out those who wait to go to `address`, and are wanted, in order.
    pub(super) fn take_all(
        &mut self,
        address: SocketAddr,
        wanted: impl Fn(&Asker, &Opening) -> bool,
    ) -> Vec<(Asker, Opening)> {
        let queued = self.queues.iter().flatten().map(|(_, id)| *id);
        let parked = self.parked.get(&address).into_iter().flatten();
        let ids: Vec<_> = queued.chain(parked.map(|(.., id)| *id)).collect();
        let goes = |id: &RegistrationId| {
            let turn = self.waiting.get(id).map(|waits| &waits.turn);
            matches!(turn, Some(Turn::Open(asker, opening)) if wanted(asker, opening))
        };
        let ids: Vec<_> = ids.into_iter().filter(goes).collect();
        let taken = ids.into_iter().filter_map(|id| match self.take(id)?.turn {
            Turn::Open(asker, opening) => Some((asker, opening)),
            Turn::Ready(..) | Turn::Resend(..) => None,
        });
        taken.collect()
    }
}

impl Pool {
    /// Sets how many REGISTERs may go out in any second, retransmissions and un-REGISTERs included; without limit unless
    /// set, and with `None` (D16)
    ///
    /// They go out one by one, evenly: attempts that have begun first, then removals and queries, then three refreshes for
    /// each first attempt. What waits is not lost; where the ceiling is too low for all refreshes, leases end and are made
    /// anew in turn.
    pub fn set_registers_a_second(&mut self, most: Option<NonZeroU32>) {
        // Those who wait for a turn that is not to come ask again after a while, as all that are held do.
        let before = self.pace.take();
        self.pace = most.map(|most| {
            let mut pace = Box::new(Pace::new(most));
            if let Some(before) = before {
                let interval = pace.interval;
                pace = before;
                pace.interval = interval;
            }
            pace
        });
        let paced = self.pace.is_some();
        let entries = self.slots.iter_mut().filter_map(|slot| slot.entry.as_mut());
        entries.for_each(|entry| entry.machine.set_paced(paced));
    }

    /// A machine asks for a flow: at once, or in its turn.
    pub(super) fn open_in_turn(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        let Some(rank) = self.entry(asker.id).map(|entry| rank(&entry.machine)) else {
            return;
        };
        match &mut self.pace {
            None => self.open_or_hold(cx, asker, opening),
            Some(pace) => {
                pace.line_up(cx.now, asker.id, rank, Turn::Open(asker, opening));
                self.feed(cx, asker.id, Input::Held(asker.op));
            }
        }
    }

    /// The flow that somebody waits for is up: it is told at once, or in its turn.
    pub(super) fn opened_in_turn(
        &mut self,
        cx: &mut Out<'_>,
        asker: Asker,
        flow: FlowId,
        info: Arc<FlowInfo>,
    ) {
        if let Some(pace) = &mut self.pace {
            let turn = Turn::Ready(asker, flow);
            pace.line_up(cx.now, asker.id, Rank::GoesOn, turn);
            // It needs the flow from now on, though its machine does not know it yet.
            if let Some(entry) = self.entry_mut(asker.id)
                && let [_, place @ None] = &mut entry.flows
            {
                *place = Some(flow);
                let user = user(entry.machine.registration(), asker.id);
                self.flows.join(flow, user);
            }
            return;
        }
        let (id, op) = (asker.id, asker.op);
        let (result, retry_in) = (Ok((flow, info)), None);
        self.feed(
            cx,
            id,
            Input::Opened {
                op,
                result,
                retry_in,
            },
        );
    }

    /// A machine sends: what it was let through for goes out, what it sends again takes its turn.
    pub(super) fn transmit(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        flow: FlowId,
        message: Bytes,
        again: bool,
    ) {
        match &mut self.pace {
            Some(pace) if again => {
                return pace.line_up(cx.now, id, Rank::GoesOn, Turn::Resend(flow, message));
            }
            Some(pace) => pace.sent(cx.now),
            None => {}
        }
        cx.out.push(PoolOutput::Send { flow, message });
    }

    /// Lets the next one through, if it is time; false where it is not, or nobody waits.
    pub(super) fn serve_pace(&mut self, cx: &mut Out<'_>) -> bool {
        let Some(pace) = self.pace.as_mut() else {
            return false;
        };
        if pace.next_at.is_none_or(|at| cx.now < at) {
            return false;
        }
        let Some((id, waits)) = pace.next() else {
            return false;
        };
        if let Turn::Open(_, opening) = &waits.turn
            && self.is_full(cx.now, id, &opening.target)
        {
            let address = opening.target.address();
            self.crowd(cx.now, address);
            if let Some(pace) = &mut self.pace {
                pace.park(id, waits, address);
            }
            return true;
        }
        match waits.turn {
            Turn::Open(asker, opening) => self.open_or_hold(cx, asker, opening),
            Turn::Ready(Asker { id, op }, flow) => {
                // Where it has ended meanwhile, the machine asks for another as all that are held do.
                if let Some(info) = self.flows.info(flow).map(Arc::clone) {
                    let (result, retry_in) = (Ok((flow, info)), None);
                    self.feed(
                        cx,
                        id,
                        Input::Opened {
                            op,
                            result,
                            retry_in,
                        },
                    );
                }
            }
            Turn::Resend(flow, message) => {
                let now = cx.now;
                let entry = self.entry_mut(id);
                // It may have been answered while it waited.
                if let Some(entry) =
                    entry.filter(|entry| entry.machine.waits_for_answer_to(&message))
                {
                    entry.machine.resent(now);
                    self.transmit(cx, id, flow, message, false);
                }
            }
        }
        true
    }
}

fn rank(machine: &Machine) -> Rank {
    if machine.has_begun() {
        Rank::GoesOn
    } else if !machine.registers() {
        Rank::Leaves
    } else if machine.bound_at().is_some() {
        Rank::Renews
    } else {
        Rank::Begins
    }
}
