//! `uzram top`: the devices, live.
//!
//! `watch` asks the servers, `screen` draws what they said, and this is the loop around both.

mod screen;
mod watch;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::watch::Watch;
use crate::args::TopArgs;
use crate::rundir::RunRoot;

/// `uzram top`.
pub(crate) fn top(args: &TopArgs, root: &RunRoot) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!("top draws on a terminal; for figures use: uzram list --json");
    }
    let mut watch = Watch::new(root, args.name.as_ref())?;
    let mut terminal = ratatui::try_init()?;
    let ended = run(
        &mut terminal,
        &mut watch,
        Duration::from_secs(args.interval),
    );
    ratatui::try_restore()?;
    ended
}

fn run(terminal: &mut DefaultTerminal, watch: &mut Watch, interval: Duration) -> Result<()> {
    let mut next = Instant::now() + interval;
    loop {
        let mut cells = 0;
        terminal.draw(|frame| cells = screen::draw(frame, watch))?;
        if watch.set_map_cells(cells) {
            // How large the map can be is known only now.
            continue;
        }
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            watch.refresh()?;
            next = Instant::now() + interval;
        } else if event::poll(left)? && !handle(&event::read()?, watch) {
            return Ok(());
        }
    }
}

/// What an event asks for; false to end.
fn handle(event: &Event, watch: &mut Watch) -> bool {
    let Event::Key(key) = event else {
        return true;
    };
    if key.kind != KeyEventKind::Press {
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Down | KeyCode::Char('j') => watch.select_next(),
        KeyCode::Up | KeyCode::Char('k') => watch.select_previous(),
        _ => {}
    }
    true
}
