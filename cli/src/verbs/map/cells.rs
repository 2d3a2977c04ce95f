//! The figures of a map.

use anyhow::Result;
use serde_json::{Value, json};
use uzram::control::Client;
use uzram::{MAX_MAP_CELLS, MapCell};

/// What a page can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Empty,
    SameFilled,
    Resident,
    Huge,
    WrittenBack,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Empty,
        Self::SameFilled,
        Self::Resident,
        Self::Huge,
        Self::WrittenBack,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::SameFilled => "same-filled",
            Self::Resident => "in memory",
            Self::Huge => "in memory, stored raw",
            Self::WrittenBack => "spilled",
        }
    }

    /// Red, green, blue.
    pub(crate) fn colour(self) -> [u8; 3] {
        match self {
            Self::Empty => [200, 200, 200],
            Self::SameFilled => [90, 180, 120],
            Self::Resident => [50, 120, 200],
            Self::Huge => [230, 120, 30],
            Self::WrittenBack => [140, 90, 180],
        }
    }

    /// For where there are no colours.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Empty => '.',
            Self::SameFilled => '=',
            Self::Resident => 'm',
            Self::Huge => 'H',
            Self::WrittenBack => 'w',
        }
    }

    fn count(self, cell: &MapCell, pages: u64) -> u64 {
        match self {
            Self::Empty => {
                let used = cell.same_filled + cell.resident + cell.huge + cell.written_back;
                pages.saturating_sub(used)
            }
            Self::SameFilled => cell.same_filled,
            Self::Resident => cell.resident,
            Self::Huge => cell.huge,
            Self::WrittenBack => cell.written_back,
        }
    }
}

/// A whole device in cells of about as many pages each.
pub(crate) struct Cells {
    /// Pages of the device.
    pub(crate) pages: u64,
    pub(crate) cells: Vec<MapCell>,
}

impl Cells {
    /// Asks a server for about `wanted` cells, in as many requests as that takes.
    pub(crate) fn fetch(client: &mut Client, wanted: u64) -> Result<Self> {
        let pages = client.page_map(0, 0, 1)?.device_pages;
        let each = pages.div_ceil(wanted.max(1)).max(1);
        let mut cells = Vec::new();
        let mut first = 0;
        while first < pages {
            let now = (each * MAX_MAP_CELLS).min(pages - first);
            let part = client.page_map(first, now, now.div_ceil(each))?;
            cells.extend(part.cells);
            first += now;
        }
        Ok(Self { pages, cells })
    }

    fn pages_a_cell(&self) -> u64 {
        self.pages.div_ceil(self.cells.len().max(1) as u64)
    }

    /// What a cell shows: of what its pages hold, the kind there is most of.
    pub(crate) fn kind_of(&self, cell: &MapCell) -> Kind {
        let held = Kind::ALL.into_iter().skip(1);
        let most = held.max_by_key(|kind| kind.count(cell, 0));
        most.filter(|kind| kind.count(cell, 0) > 0)
            .unwrap_or(Kind::Empty)
    }

    /// The mixture of the colours of a cell's pages.
    pub(crate) fn colour_of(&self, cell: &MapCell) -> [u8; 3] {
        let pages = self.pages_a_cell();
        let counts = Kind::ALL.map(|kind| (kind.colour(), kind.count(cell, pages)));
        let all = counts.iter().map(|(_, count)| count).sum::<u64>().max(1);
        std::array::from_fn(|i| {
            let sum: u64 = counts
                .iter()
                .map(|(colour, n)| u64::from(colour[i]) * n)
                .sum();
            (sum / all) as u8
        })
    }

    /// Pages of a kind on the whole device.
    pub(crate) fn total(&self, kind: Kind) -> u64 {
        let of = |kind: Kind| self.cells.iter().map(move |cell| kind.count(cell, 0));
        match kind {
            Kind::Empty => {
                let used = Kind::ALL.into_iter().skip(1).flat_map(of).sum();
                self.pages.saturating_sub(used)
            }
            kind => of(kind).sum(),
        }
    }

    pub(crate) fn as_json(&self) -> Value {
        json!({
            "pages": self.pages,
            "columns": ["same_filled", "resident", "huge", "written_back"],
            "cells": self.cells,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(same_filled: u64, resident: u64, huge: u64, written_back: u64) -> MapCell {
        MapCell {
            same_filled,
            resident,
            huge,
            written_back,
        }
    }

    #[test]
    fn a_cell_shows_what_it_holds_most_of() {
        let cells = Cells {
            pages: 30,
            cells: vec![cell(0, 0, 0, 1), cell(3, 4, 0, 3), cell(0, 0, 0, 0)],
        };
        let kinds: Vec<_> = cells.cells.iter().map(|cell| cells.kind_of(cell)).collect();
        assert_eq!(kinds, [Kind::WrittenBack, Kind::Resident, Kind::Empty]);
        assert_eq!(cells.total(Kind::Empty), 30 - 11);
        assert_eq!(cells.total(Kind::WrittenBack), 4);
        assert_eq!(cells.colour_of(&cells.cells[2]), Kind::Empty.colour());
        let full = cell(0, 10, 0, 0);
        assert_eq!(cells.colour_of(&full), Kind::Resident.colour());
    }
}
