"""`replica backfill` reads days again, from bars of one's own, and says what it did."""

import json
from datetime import date
from pathlib import Path

from replica_platform.replica import Master
from replica_platform_tests.conftest import Cli
from replica_platform_tests.market.conftest import Changeable


def test_days_of_a_folder_are_read_again(
    tmp_path: Path, cli: Cli, source: Changeable, master: Master
) -> None:
    bars = tmp_path / "bars"
    bars.mkdir()
    source.frame.to_csv(bars / "all.csv", index=False)
    rules = tmp_path / "watchlist.yaml"
    rules.write_text("top: 2\n")
    settings = {"REPLICA_BARS": str(bars), "REPLICA_WATCH_RULES": str(rules)}

    def backfill(*arguments: object) -> dict[str, dict[str, object]]:
        done = cli("backfill", "--master", master.path, "--json", *arguments, **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = backfill("--from", "2022-01-01", "--to", "2025-10-10")
    assert first["ohlcv"]["inserted"] == first["indicators"]["inserted"] == len(source.frame)
    assert first["watchlist"]["rows"] == 2

    days = source.frame["day"].between("2024-05-01", "2024-05-31")
    source.frame.loc[days, "volume"] += 1
    source.frame.to_csv(bars / "all.csv", index=False)
    again = backfill("--from", "2024-05-01", "--to", "2024-05-31")
    assert again["ohlcv"]["updated"] == int(days.sum())
    assert again["ohlcv"]["first_day"] == str(date(2024, 5, 1))
    assert not again["indicators"]["changed"]  # a volume is in no indicator

    with master.write() as connection:
        connection.execute("delete from ohlcv where day = '2024-05-02'")
    shown = cli(
        "backfill",
        "--master",
        master.path,
        "--from",
        "2024-05-02",
        "--to",
        "2024-05-02",
        **settings,
    )
    assert shown.returncode == 0, shown.stderr
    assert "Readers see it with the next publication" in shown.stdout
    with master.read() as connection:
        assert connection.execute(
            "select count(*) = (select count(*) from indicators) from ohlcv"
        ).fetchone() == (True,)


def test_a_wrong_call_or_setting_changes_nothing(tmp_path: Path, cli: Cli, master: Master) -> None:
    wrong = cli("backfill", "--from", "2024-05-02", "--to", "2024-05-01")
    assert wrong.returncode == 2
    assert "--to is before --from" in wrong.stderr
    absent = cli(
        "backfill", "--from", "2024-05-02", "--master", master.path,
        REPLICA_BARS=str(tmp_path / "absent"),
    )  # fmt: skip
    assert absent.returncode == 1
    assert "check REPLICA_BARS" in absent.stderr
    assert not master.path.exists()
