//! How much is attacked by chance: a little with the other tests, more where it is asked for
//! (`scripts/soak.sh attack`).

use proptest::test_runner::Config;

/// So many cases, or as many as `UZRAM_ATTACK_ROUNDS` says. One that fails is shown with what replays it.
pub fn rounds(few: u32) -> Config {
    let asked = std::env::var("UZRAM_ATTACK_ROUNDS").ok();
    let cases = asked.map_or(few, |rounds| rounds.parse().expect("a number of rounds"));
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}
