//! The map as a picture: a title, the cells in rows, a legend.

use anyhow::Result;
use uzram::PAGE_SIZE;

use super::canvas::{Canvas, Raster, Svg, TEXT};
use super::cells::{Cells, Kind};
use crate::base::table::{bytes, count};

/// Cells of a picture, and of one of its rows.
pub(super) const CELLS: u64 = ROW as u64 * 64;
const ROW: usize = 96;

/// Pixels of a cell's side, and around all.
const CELL: u32 = 8;
const MARGIN: u32 = 12;

pub(super) fn svg(name: &str, cells: &Cells) -> Vec<u8> {
    let mut canvas = Svg::new(size(cells));
    draw(&mut canvas, name, cells);
    canvas.finish()
}

pub(super) fn png(name: &str, cells: &Cells) -> Result<Vec<u8>> {
    let mut canvas = Raster::new(size(cells));
    draw(&mut canvas, name, cells);
    canvas.finish()
}

fn map_height(cells: &Cells) -> u32 {
    cells.cells.len().div_ceil(ROW) as u32 * CELL
}

fn size(cells: &Cells) -> (u32, u32) {
    let legend = Kind::ALL.len() as u32 * (TEXT + 4);
    let height = 4 * MARGIN + TEXT + map_height(cells) + legend;
    (2 * MARGIN + ROW as u32 * CELL, height)
}

fn draw(canvas: &mut impl Canvas, name: &str, cells: &Cells) {
    let page = PAGE_SIZE as u64;
    let each = cells.pages.div_ceil(cells.cells.len().max(1) as u64);
    let (all, each) = (bytes(cells.pages * page), bytes(each * page));
    let title = format!("{name}, {all}; a square is {each}");
    canvas.text((MARGIN, MARGIN), &title);
    let top = 2 * MARGIN + TEXT;
    for (row, line) in (0..).zip(cells.cells.chunks(ROW)) {
        draw_row(
            canvas,
            (MARGIN, top + row * CELL),
            line.iter().map(|c| cells.colour_of(c)),
        );
    }
    let mut y = top + map_height(cells) + MARGIN;
    for kind in Kind::ALL {
        let pages = cells.total(kind);
        let label = format!(
            "{}: {} pages, {}",
            kind.label(),
            count(pages),
            bytes(pages * page)
        );
        canvas.rectangle((MARGIN, y), (TEXT, TEXT), kind.colour());
        canvas.text((MARGIN + TEXT + 8, y), &label);
        y += TEXT + 4;
    }
}

/// Neighbours of one colour become one rectangle.
fn draw_row(canvas: &mut impl Canvas, (x, y): (u32, u32), colours: impl Iterator<Item = [u8; 3]>) {
    let colours: Vec<_> = colours.collect();
    let mut at = x;
    for same in colours.chunk_by(|a, b| a == b) {
        let width = same.len() as u32 * CELL;
        canvas.rectangle((at, y), (width, CELL), same[0]);
        at += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uzram::MapCell;

    #[test]
    fn neighbours_of_one_colour_are_drawn_together() {
        let full = MapCell {
            written_back: 1,
            ..MapCell::default()
        };
        let cells = Cells {
            pages: 300,
            cells: [vec![full; 100], vec![MapCell::default(); 200]].concat(),
        };
        let text = String::from_utf8(svg("a", &cells)).unwrap();
        // The background, four rows of which one has two colours, and the legend.
        assert_eq!(text.matches("<rect").count(), 1 + 5 + 5, "{text}");
        assert!(text.contains("spilled: 100 pages, 400 KiB"), "{text}");
        assert!(png("a", &cells).unwrap().starts_with(b"\x89PNG"));
    }
}
