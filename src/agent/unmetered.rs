//! The meter without the `metrics` feature: it does nothing.

use crate::{Event, RegistrationId, Status};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Meter;

impl Meter {
    pub(super) const fn new() -> Self {
        Self
    }

    pub(super) const fn stands(&self, _: RegistrationId, _: Option<&Status>, _: Instant) {}
    pub(super) const fn event(&self, _: RegistrationId, _: &Event, _: Instant) {}
    pub(super) const fn full(&self) {}
    pub(super) const fn dropped() {}
    pub(super) const fn waiting(&self, _: usize, _: usize) {}
}
