//! How `uzram top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use uzram::Latency;

use super::devices;
use super::watch::{Watch, Watched};
use crate::base::table::{bytes, count, duration};
use crate::verbs::map::{Cells, Kind};

/// Lines of the table with one device, and of a map with one line: their borders, and a head.
const LEAST_TABLE: u16 = 4;
const LEAST_MAP: u16 = 3;

/// Lines of what happened over time; without them there is nothing of it.
const HISTORY: u16 = 10;

/// Draws all of it; returns how many cells the map has room for.
pub(super) fn draw(frame: &mut Frame<'_>, watch: &Watch) -> u64 {
    let (rows, height) = (watch.devices.len() as u16, frame.area().height);
    let table = rows.saturating_add(3).min((height / 3).max(LEAST_TABLE));
    let left = height.saturating_sub(table + 1);
    let history = if left >= HISTORY + LEAST_MAP {
        HISTORY
    } else {
        0
    };
    let [table, lines, map, help] = Layout::vertical([
        Constraint::Length(table),
        Constraint::Length(history),
        Constraint::Min(LEAST_MAP),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    devices::draw(frame, table, watch);
    if let Some(device) = watch.selected().filter(|_| history > 0) {
        draw_lines(frame, lines, device);
    }
    let cells = draw_map(frame, map, watch);
    let keys = Line::from(" q quit   ↑ ↓ another device").style(Style::new().dim());
    frame.render_widget(keys, help);
    cells
}

/// The selected device over time.
fn draw_lines(frame: &mut Frame<'_>, area: Rect, device: &Watched) {
    let [top, bottom] = Layout::vertical([Constraint::Fill(1); 2]).areas(area);
    let [reads, writes] = Layout::horizontal([Constraint::Fill(1); 2]).areas(top);
    let [memory, spilled] = Layout::horizontal([Constraint::Fill(1); 2]).areas(bottom);
    let history = &device.history;
    let now = |samples: &std::collections::VecDeque<u64>| *samples.back().unwrap_or(&0);
    let reading = format!(
        "reads {}/s{}",
        count(now(&history.reads)),
        slowest(&device.lately.read)
    );
    let writing = format!(
        "writes {}/s{}",
        count(now(&history.writes)),
        slowest(&device.lately.write)
    );
    let limit = device.stats().map_or(0, |stats| stats.mem_limit);
    let used = format!("memory {}", bytes(now(&history.memory)));
    let (out, back) = (count(now(&history.spilled)), count(now(&history.read_back)));
    let traffic = format!("spilled {out}/s, back {back}/s");
    sparkline(frame, reads, &reading, &history.reads, None, Color::Green);
    sparkline(
        frame,
        writes,
        &writing,
        &history.writes,
        None,
        Color::Yellow,
    );
    let most = Some(limit).filter(|limit| *limit > 0);
    sparkline(frame, memory, &used, &history.memory, most, Color::Cyan);
    sparkline(
        frame,
        spilled,
        &traffic,
        &history.spilled,
        None,
        Color::Magenta,
    );
}

/// What all but a hundredth took less than.
fn slowest(latency: &Latency) -> String {
    let p99 = latency.quantile(0.99);
    p99.map_or_else(String::new, |ns| format!(", 99% below {}", duration(ns)))
}

fn sparkline(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    samples: &std::collections::VecDeque<u64>,
    most: Option<u64>,
    colour: Color,
) {
    let block = Block::bordered().title(format!(" {title} "));
    let width = block.inner(area).width as usize;
    // The latest stands at the right end.
    let shown = samples.len().min(width);
    let padding = std::iter::repeat_n(0, width - shown);
    let latest = samples.iter().skip(samples.len() - shown).copied();
    let data: Vec<u64> = padding.chain(latest).collect();
    let mut line = Sparkline::default().data(data).block(block).style(colour);
    if let Some(most) = most {
        line = line.max(most);
    }
    frame.render_widget(line, area);
}

/// The selected device's pages, from its start to its end; returns how many cells there is room for.
fn draw_map(frame: &mut Frame<'_>, area: Rect, watch: &Watch) -> u64 {
    let block = Block::bordered().title(legend(area.width.saturating_sub(2)));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if let Some(map) = &watch.map {
        let width = usize::from(inner.width.max(1));
        let lines = map.cells.chunks(width).map(|cells| map_line(map, cells));
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
    }
    u64::from(inner.width) * u64::from(inner.height)
}

fn map_line(map: &Cells, cells: &[uzram::MapCell]) -> Line<'static> {
    let kinds: Vec<_> = cells.iter().map(|cell| map.kind_of(cell)).collect();
    let same = kinds.chunk_by(|a, b| a == b);
    Line::from_iter(same.map(|same| {
        let text = same[0].letter().to_string().repeat(same.len());
        Span::styled(text, style(same[0]))
    }))
}

fn style(kind: Kind) -> Style {
    let colour = match kind {
        Kind::Empty => Color::DarkGray,
        Kind::SameFilled => Color::Green,
        Kind::Resident => Color::Blue,
        Kind::Huge => Color::Yellow,
        Kind::WrittenBack => Color::Magenta,
    };
    Style::new().fg(colour)
}

/// What the letters mean, as far as that goes in a width.
fn legend(width: u16) -> Line<'static> {
    let written = |head, gap, words: fn(Kind) -> &'static str| {
        let kinds = Kind::ALL.into_iter().flat_map(move |kind| {
            let letter = Span::styled(kind.letter().to_string(), style(kind));
            [letter, Span::raw(format!(" {}{gap}", words(kind)))]
        });
        Line::from_iter([Span::raw(head)].into_iter().chain(kinds))
    };
    let whole = [
        written(" pages: ", "  ", Kind::label),
        written(" pages: ", "  ", short_label),
    ];
    let fits = |line: &Line<'_>| line.width() <= usize::from(width);
    let fitting = whole.into_iter().find(fits);
    fitting.unwrap_or_else(|| written(" ", " ", short_label))
}

fn short_label(kind: Kind) -> &'static str {
    match kind {
        Kind::Empty => "empty",
        Kind::SameFilled => "same",
        Kind::Resident => "mem",
        Kind::Huge => "raw",
        Kind::WrittenBack => "spilled",
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;
    use uzram::{MapCell, Stats};

    use super::*;

    /// What stands on a terminal of that size.
    fn screen(watch: &Watch, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| {
                draw(frame, watch);
            })
            .unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content.chunks(usize::from(width));
        let text = |line: &[Cell]| line.iter().map(Cell::symbol).collect::<String>();
        let lines = lines.map(text);
        lines
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }

    #[test]
    fn it_is_whole_on_small_and_on_large_terminals() {
        let stats = |mem_used_total| {
            let mut stats = Stats::default();
            stats.disksize = 64 << 20;
            stats.orig_data_size = 100 << 10;
            stats.mem_used_total = mem_used_total;
            stats.mem_limit = 16 << 20;
            stats.resident_pages = 25;
            stats
        };
        let mut watch = Watch::of(&[
            ("scratch", stats(45056)),
            ("vm-with-a-long-name", stats(1 << 20)),
        ]);
        let history = &mut watch.devices[0].history;
        let wave = (0..200).map(|i| 1000 + 40 * (i % 50));
        history.reads.extend(wave.clone());
        history.writes.extend(wave.clone().map(|n| n / 2));
        history.memory.extend(wave.map(|n| n << 12));
        history.spilled.extend((0..200).map(|i| i % 7));
        history.read_back.push_back(12345);
        let cell = |i: u64| match i / 60 % 5 {
            0 => MapCell::from([1, 0, 0, 0]),
            1 => MapCell::from([0, 2, 1, 0]),
            2 => MapCell::from([0, 0, 3, 0]),
            3 => MapCell::from([0, 1, 0, 2]),
            _ => MapCell::default(),
        };
        watch.map = Some(Cells {
            pages: 16384,
            cells: (0..600).map(cell).collect(),
        });
        let sizes = [
            (120, 40, include_str!("screens/120x40.txt")),
            (80, 24, include_str!("screens/80x24.txt")),
            (60, 20, include_str!("screens/60x20.txt")),
            (40, 10, include_str!("screens/40x10.txt")),
        ];
        let mut wrong = String::new();
        for (width, height, expected) in sizes {
            let screen = screen(&watch, width, height);
            if screen != expected {
                wrong += &format!("{width}x{height}:\n{screen}");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
