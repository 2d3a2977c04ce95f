//! Which allocators there are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which allocator keeps the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PoolKind {
    /// Size classes cut into zspages: the densest.
    Zsmalloc,
    /// Two objects a page frame.
    Zbud,
    /// Three objects a page frame.
    Z3fold,
}

impl PoolKind {
    /// Every allocator.
    pub const ALL: [Self; 3] = [Self::Zsmalloc, Self::Zbud, Self::Z3fold];
}

impl FromStr for PoolKind {
    type Err = Error;

    /// Reads `zsmalloc`, `zbud` or `z3fold`.
    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|pool| pool.to_string() == text);
        named.ok_or_else(|| Error::InvalidConfig {
            option: "pool",
            reason: format!("{text:?} is not zsmalloc, zbud or z3fold"),
        })
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zsmalloc => "zsmalloc",
            Self::Zbud => "zbud",
            Self::Z3fold => "z3fold",
        })
    }
}
