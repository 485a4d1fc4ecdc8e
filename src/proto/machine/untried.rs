//! Where the next attempt goes on, after one that ended before it came to all targets.

use super::*;

impl Machine {
    /// Notes the target that this attempt has not come to: at its end by time (D3), or beyond the eighth.
    ///
    /// With a memory of dead targets those come last anyway. Without one (`asterisk()`, D12) each attempt would spend its
    /// 96 s on the same three that are silent, and never reach the one that answers.
    pub(super) fn leave_off(&mut self) {
        let forgets = self.registration.policy().dead_target_memory.is_zero();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !forgets || cycle.purpose != Purpose::Register || cycle.at_target > 0 {
            return;
        }
        let at_hand = cycle.targets.get(cycle.next).cloned();
        if let Some(target) = at_hand.or_else(|| cycle.beyond.take()) {
            self.seldom.change().untried = Some(target);
        }
    }

    /// Begins with the target that the last attempt has not come to, where it is still one.
    pub(super) fn go_on(&mut self, targets: &mut [Target]) {
        let untried = self.seldom.there().and_then(|seldom| seldom.untried.take());
        if let Some(untried) = untried
            && let Some(place) = targets.iter().position(|target| *target == untried)
        {
            targets.rotate_left(place);
        }
    }
}
