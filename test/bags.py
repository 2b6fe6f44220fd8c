"""Small bags for tests, written by the `rosbags` library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
STORE1 = get_typestore(Stores.ROS1_NOETIC)
IMAGE, COMPRESSED, INFO = (f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage", "CameraInfo"))
K = (500.0, 0.0, 30.5, 0.0, 510.0, 20.5, 0.0, 0.0, 1.0)


def header(stamp_ns, frame_id="left_optical", store=STORE):
    time = store.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    more = {"seq": 0} if store is STORE1 else {}
    return store.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id, **more)


def image(pixels, stamp_ns, encoding="mono8", padding=0, store=STORE):
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    return store.types[IMAGE](
        header=header(stamp_ns, store=store),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.ravel(),
    )


def compressed(data, stamp_ns, name="jpeg"):
    return STORE.types[COMPRESSED](header=header(stamp_ns), format=name, data=np.frombuffer(data, np.uint8))


def camera_info(width, height, stamp_ns, k=K, d=(-0.2, 0.05, 0.001, -0.001, 0.0), store=STORE):
    roi = store.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    arrays = {"d": np.array(d), "k": np.array(k), "r": np.eye(3).ravel(), "p": np.arange(12.0)}
    if store is STORE1:
        arrays = {name.upper(): value for name, value in arrays.items()}
    return store.types[INFO](
        header=header(stamp_ns, store=store),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        binning_x=0,
        binning_y=0,
        roi=roi,
        **arrays,
    )


def write_bag(path: Path, messages, storage="mcap"):
    """`messages`: (topic, type, log time in ns, message); returns the path."""
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        connections = {}
        for topic, kind, time, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], time, STORE.serialize_cdr(message, kind))
    return path


def write_bag1(path: Path, messages):
    """The same as a ROS 1 bag."""
    with Writer1(path) as writer:
        connections = {}
        for topic, kind, time, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE1)
            writer.write(connections[topic], time, STORE1.serialize_ros1(message, kind))
    return path
