//! Without the feature `deflate` nothing is agreed on, and nothing compressed.

use http::{HeaderMap, HeaderValue};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Deflating;

impl Deflating {
    pub(crate) const OFF: Self = Self;

    pub(crate) fn is_off(&self) -> bool {
        true
    }

    pub(crate) fn agree(&self, _: &HeaderMap) -> Agreed {
        Agreed::NOTHING
    }

    pub(crate) fn deflate(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    pub(crate) fn problem(&self) -> Option<String> {
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed;

impl Agreed {
    pub(crate) const NOTHING: Self = Self;

    pub(crate) fn inflates(self) -> bool {
        false
    }

    pub(crate) fn takes(self, _: usize) -> bool {
        false
    }

    pub(crate) fn header(self) -> Option<HeaderValue> {
        None
    }
}

#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "nothing is inflated that could be wrong")]
pub(crate) enum Misfit {
    Broken,
    TooMuch,
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Inflater {}

impl Inflater {
    pub(crate) fn of(_: bool) -> Option<Self> {
        None
    }

    pub(crate) fn came(&self) -> usize {
        match *self {}
    }

    pub(crate) fn inflate(&mut self, _: &[u8], _: &mut Vec<u8>, _: usize) -> Result<usize, Misfit> {
        match *self {}
    }

    pub(crate) fn finish(&mut self, _: &mut Vec<u8>, _: usize) -> Result<(), Misfit> {
        match *self {}
    }
}
