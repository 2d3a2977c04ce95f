//! How `uzram top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use uzram::Latency;

use super::devices;
use super::watch::{Watch, Watched};
use crate::map::{Cells, Kind};
use crate::table::{bytes, count, duration};

/// Draws all of it; returns how many cells the map has room for.
pub(super) fn draw(frame: &mut Frame<'_>, watch: &Watch) -> u64 {
    let rows = watch.devices.len() as u16;
    let [table, lines, map, help] = Layout::vertical([
        Constraint::Length((rows + 3).min(frame.area().height / 3)),
        Constraint::Length(10),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    devices::draw(frame, table, watch);
    if let Some(device) = watch.selected() {
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
    let traffic = format!("pages spilled {out}/s, read back {back}/s");
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
    let block = Block::bordered().title(legend());
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

fn legend() -> Line<'static> {
    let kinds = Kind::ALL.into_iter().flat_map(|kind| {
        let letter = Span::styled(kind.letter().to_string(), style(kind));
        [letter, Span::raw(format!(" {}  ", kind.label()))]
    });
    Line::from_iter([Span::raw(" pages: ")].into_iter().chain(kinds))
}
