//! The table of devices at the head of `uzram top`: the columns of `uzram list` and more, as far as there
//! is room.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};
use uzram::{PAGE_SIZE, Stats};

use super::watch::{Watch, Watched};
use crate::base::table::{bytes, count, ratio};

/// A figure of each device.
struct Column {
    head: &'static str,
    /// In characters.
    width: u16,
    figure: fn(&Watched, &Stats) -> String,
}

/// From left to right, behind the name.
const COLUMNS: [Column; 10] = [
    column(SIZE, 8, |_, s| bytes(s.disksize)),
    column(STORED, 8, |_, s| bytes(s.orig_data_size)),
    column(SPILLED, 8, |_, s| bytes(page_bytes(s.written_back_pages))),
    column("MEMORY", 8, |_, s| bytes(s.mem_used_total)),
    column(LIMIT, 8, |_, s| limit(s.mem_limit)),
    column(RATIO, 6, |_, s| {
        ratio(page_bytes(s.resident_pages), s.mem_used_total)
    }),
    column(BACKING, 8, |_, s| bytes(s.backing_bytes_used)),
    column(READS, 8, |d, _| rate(d.history.reads.back())),
    column(WRITES, 8, |d, _| rate(d.history.writes.back())),
    column(TO_RESTORE, 10, |_, s| bytes(s.restore_bytes_left)),
];

const SIZE: &str = "SIZE";
const STORED: &str = "STORED";
const SPILLED: &str = "SPILLED";
const LIMIT: &str = "LIMIT";
const RATIO: &str = "RATIO";
const BACKING: &str = "BACKING";
const READS: &str = "READ/S";
const WRITES: &str = "WRITE/S";
const TO_RESTORE: &str = "TO RESTORE";

/// What can be done without, the first most easily.
const DISPENSABLE: [&str; 9] = [
    RATIO, SPILLED, BACKING, LIMIT, TO_RESTORE, READS, WRITES, SIZE, STORED,
];

/// How much of a name is to be seen for that.
const NAME_WIDTH: usize = 12;

const fn column(head: &'static str, width: u16, figure: fn(&Watched, &Stats) -> String) -> Column {
    Column {
        head,
        width,
        figure,
    }
}

fn page_bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

fn limit(limit: u64) -> String {
    match limit {
        0 => "none".to_owned(),
        limit => bytes(limit),
    }
}

fn rate(sample: Option<&u64>) -> String {
    sample.map_or_else(|| "-".to_owned(), |n| count(*n))
}

/// The columns of a table `width` characters wide whose longest name has `name` of them; what is to be
/// restored has one while anything is.
fn columns(width: u16, name: usize, is_restoring: bool) -> Vec<&'static Column> {
    let mut shown: Vec<_> = COLUMNS
        .iter()
        .filter(|column| is_restoring || column.head != TO_RESTORE)
        .collect();
    for dispensable in DISPENSABLE {
        let taken: u16 = shown.iter().map(|column| column.width + 1).sum();
        if usize::from(width.saturating_sub(taken)) >= name.min(NAME_WIDTH) {
            break;
        }
        shown.retain(|column| column.head != dispensable);
    }
    shown
}

/// Draws the table.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, watch: &Watch) {
    let block = Block::bordered().title(" uzram ");
    if watch.devices.is_empty() {
        let text = Paragraph::new("no devices are being served").block(block);
        return frame.render_widget(text, area);
    }
    let devices = watch.devices.iter();
    let longest = devices.clone().map(|d| d.name.as_str().chars().count());
    let width = block.inner(area).width;
    let columns = columns(
        width,
        longest.max().unwrap_or(0),
        devices
            .clone()
            .any(|d| d.stats().is_some_and(|s| s.restore_bytes_left > 0)),
    );
    // Figures are never cut off before the name is.
    let taken: u16 = columns.iter().map(|column| column.width + 1).sum();
    let name_width = usize::from(width.saturating_sub(taken));
    let figures = columns.iter().map(|c| Constraint::Length(c.width));
    let widths = [Constraint::Fill(1)].into_iter().chain(figures);
    let heads = columns.iter().map(|column| figure(column.head.to_owned()));
    let head = [Cell::from("NAME")].into_iter().chain(heads);
    let table = Table::new(
        devices.map(|device| row(device, name_width, &columns)),
        widths,
    )
    .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
    .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
    .block(block);
    let mut state = TableState::new().with_selected(Some(watch.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn row(device: &Watched, name_width: usize, columns: &[&Column]) -> Row<'static> {
    let figures = columns.iter().map(|column| {
        let stats = device.stats();
        figure(stats.map_or_else(|| "?".to_owned(), |stats| (column.figure)(device, stats)))
    });
    let name = Cell::from(shortened(device.name.as_str(), name_width));
    Row::new([name].into_iter().chain(figures))
}

/// A name of at most so many characters; one that was cut ends with an ellipsis.
fn shortened(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    let kept = name.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// Figures stand to the right.
fn figure(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(width: u16, name: usize, is_restoring: bool) -> Vec<&'static str> {
        let columns = columns(width, name, is_restoring);
        columns.iter().map(|column| column.head).collect()
    }

    #[test]
    fn what_there_is_no_room_for_is_left_out() {
        let all = heads(98, 7, false);
        assert_eq!(all.len(), COLUMNS.len() - 1);
        assert_eq!(heads(98, 7, true).last(), Some(&TO_RESTORE));
        let narrow = heads(78, 6, false);
        assert!(!narrow.contains(&RATIO) && narrow.contains(&SPILLED));
        let narrower = heads(78, 7, false);
        assert!(!narrower.contains(&RATIO) && !narrower.contains(&SPILLED));
        // Figures are there whole or not at all, and a name is to be told by its start.
        assert_eq!(
            heads(58, 64, false),
            [SIZE, STORED, "MEMORY", READS, WRITES]
        );
        assert_eq!(heads(38, 64, false), [STORED, "MEMORY"]);
        assert_eq!(heads(10, 64, false), ["MEMORY"]);
    }
}
