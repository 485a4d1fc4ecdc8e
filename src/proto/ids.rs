//! The names by which the layers speak of registrations, flows and operations.

use std::fmt;
use std::num::NonZeroU64;

/// A registration in a [`Pool`](crate::Pool) or `Agent`
///
/// Never used again for another registration: a slot number with the generation that held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistrationId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl RegistrationId {
    /// An id made from its parts, for a test or a mock of [`Registrar`](crate::Registrar).
    #[must_use]
    pub const fn from_parts(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }
}

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}

/// A flow: one connection, or one pair of UDP addresses (RFC 5626 §2)
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(
    /// The number and 1: an `Option<FlowId>` is no larger, and every registration has several.
    NonZeroU64,
);

impl FlowId {
    /// An id made from a number below [`u64::MAX`]; the agent mints its own from 1 upwards.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(number))
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0.get() - 1
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowId").field(&self.number()).finish()
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow {}", self.number())
    }
}

/// One question of a [`Machine`](crate::Machine) to its host; an answer to an older one is ignored
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId(pub(crate) u32);

impl OpId {
    /// An id made from a number, for a test of a host.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}
