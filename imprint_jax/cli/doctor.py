"""`imprint doctor`: one screen to paste into a bug report."""

from pathlib import Path

from rich.table import Table

from imprint_jax.cli.terminal import App, cache_folder, stdout

app = App()


@app.command()
def doctor() -> None:
    """Show what is installed, the devices and kernels, free memory and disk, and what to expect."""
    import platform

    import jax

    from imprint_jax.models.attention import Target
    from imprint_jax.runtime import doctor as facts

    target = Target.of(jax.local_devices()[0])
    total, free = facts.memory()
    free_disk = facts.disk(Path.cwd())
    flash = f"cuDNN's flash kernel, heads up to {target.flash_width}"
    gb = lambda size: f"{size / 1e9:.0f} GB"
    extras = facts.extras()
    rows = {
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions().items()),
        "extras": ", ".join(name for name in extras if extras[name]) or "none",
        "not installed": ", ".join(name for name in extras if not extras[name]),
        "system": f"{platform.platform()}, {platform.machine()}",
        "devices": "; ".join(facts.devices()),
        "attention": flash if target.flash_width else "plain and chunked, by XLA",
        "memory": f"{gb(free)} of {gb(total)} free",
        "disk here": f"{gb(free_disk)} free",
        "compiled programs": f"{cache_folder()}, {gb(facts.disk(cache_folder()))} free",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value or "-")
    stdout.print(table)
    for line in facts.advice(jax.default_backend(), free, free_disk):
        stdout.print(f"- {line}")
