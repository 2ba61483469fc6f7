import os
from pathlib import Path

import av
import numpy as np
import pytest

from imagewam.data.video import VideoDecoder, read_frames

FPS = 30


@pytest.fixture
def moving_video(tmp_path) -> Path:
    """60 frames of a drifting pattern with long groups of pictures and B-frames: the hard case for seeking."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    path = tmp_path / "moving.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "25", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for shift in range(60):
            frame = av.VideoFrame.from_ndarray(np.roll(pattern, shift, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_random_access_equals_sequential_decoding(moving_video):
    expected = decode_all(moving_video)
    order = np.random.default_rng(1).permutation(60).tolist() + [0, 1, 2, 59, 59, 0]
    for index, frame in zip(order, read_frames(moving_video, order, fps=FPS, num_frames=60), strict=True):
        np.testing.assert_array_equal(frame, expected[index])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.mp4"):
        read_frames(tmp_path / "absent.mp4", [0], fps=FPS, num_frames=1)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty.mp4.*empty \(0 bytes\)"):
        read_frames(tmp_path / "empty.mp4", [0], fps=FPS, num_frames=1)


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video here")
    with pytest.raises(ValueError, match="text.mp4.*not a readable video"):
        read_frames(tmp_path / "text.mp4", [0], fps=FPS, num_frames=1)


def test_too_few_frames_are_counted(moving_video):
    with pytest.raises(ValueError, match="moving.mp4.*expected at least 61 frames, found 60"):
        read_frames(moving_video, [0], fps=FPS, num_frames=61)


def test_a_cut_off_file_says_how_many_frames_decode(moving_video):
    os.truncate(moving_video, moving_video.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"moving.mp4: frame 59 .*expected 60 frames, found \d+ that decode"):
        read_frames(moving_video, [59], fps=FPS, num_frames=60)


def test_overwritten_bytes_are_not_shown_as_a_picture(moving_video):
    size = moving_video.stat().st_size
    with open(moving_video, "r+b") as file:
        file.seek(size // 3)
        file.write(b"\xff" * (size // 2))
    with pytest.raises(ValueError, match="moving.mp4: frame .* cannot be decoded"):
        read_frames(moving_video, range(60), fps=FPS, num_frames=60)


def test_another_frame_rate_is_refused(moving_video):
    with pytest.raises(ValueError, match="expected 15 frames per second, found 30"):
        read_frames(moving_video, [0], fps=15, num_frames=60)


def test_a_decoder_works_on_after_an_error(moving_video):
    decoder = VideoDecoder(moving_video, FPS)
    with pytest.raises(ValueError, match="frame 60 cannot be decoded"):
        decoder.read(60)
    np.testing.assert_array_equal(decoder.read(7), decode_all(moving_video)[7])
