def test_a_data_set_is_packed_and_then_opened_by_any_command(said, coloured_folder, tmp_path):
    out = tmp_path / "packed"
    status, text, err = said("pack", coloured_folder, out, "--chunk_mib", "0.002")
    assert (status, err) == (0, "")
    assert text.startswith(f"{out}: 48 for train, 18 for val, in ")
    status, text, _ = said("check", out, "--out", tmp_path / "check")
    assert "48" in text
    assert status == 0
    status, _, err = said("pack", coloured_folder, out)
    assert (status, err) == (2, f"pack: out must not exist yet, got {out}, which would be overwritten\n")


def test_unreadable_images_are_named(said, coloured_folder, tmp_path):
    import shutil

    data = shutil.copytree(coloured_folder, tmp_path / "data")
    (data / "val" / "red" / "00.png").write_bytes(b"")
    status, text, err = said("pack", data, tmp_path / "out", "--data_options.max_unreadable", "0.1")
    assert status == 0
    assert "17 for val" in text
    assert err.startswith("pack: left out: val/red/00.png: ")


def test_a_size_that_no_chunk_has_is_refused(said, coloured_folder, tmp_path):
    status, _, err = said("pack", coloured_folder, tmp_path / "out", "--chunk_mib", "5000")
    assert (status, err) == (2, "pack: chunk_mib must be at least 0.001 and below 4096, got 5000.0\n")
