//! Messages as bytes: what we read, and what we write.

pub(crate) mod scan;
pub(crate) mod value;
pub(crate) mod write;
