"""One contract for message_filters and its replacement; then the replacement over DDS."""

from __future__ import annotations

import importlib.util
import random
import threading
import time
from types import SimpleNamespace

import pytest

from loftr_ros.ros.input import synchronizer
from loftr_ros.ros.input.synchronizer import (
    LocalApproximateTimeSynchronizer,
    LocalFilter,
    LocalSubscriber,
    LocalTimeSynchronizer,
)

HAS_ROS = importlib.util.find_spec("rclpy") is not None
HAS_MESSAGE_FILTERS = HAS_ROS and importlib.util.find_spec("message_filters") is not None
needs_ros = pytest.mark.skipif(not HAS_ROS, reason="rclpy is not installed")


def ours():
    return SimpleNamespace(
        filter=LocalFilter,
        exact=LocalTimeSynchronizer,
        approximate=LocalApproximateTimeSynchronizer,
        subscriber=LocalSubscriber,
    )


def upstream():
    import message_filters

    return SimpleNamespace(
        filter=message_filters.SimpleFilter,
        exact=message_filters.TimeSynchronizer,
        approximate=message_filters.ApproximateTimeSynchronizer,
        subscriber=message_filters.Subscriber,
    )


@pytest.fixture(
    params=[
        pytest.param(ours, id="ours"),
        pytest.param(
            upstream,
            id="message_filters",
            marks=pytest.mark.skipif(
                not HAS_MESSAGE_FILTERS, reason="message_filters is not installed (a ROS installation has it)"
            ),
        ),
    ]
)
def api(request):
    return request.param()


def message(milliseconds, text=""):
    """A message with a header stamp in milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    if HAS_ROS:
        from builtin_interfaces.msg import Time

        stamp = Time(sec=seconds, nanosec=rest * 1_000_000)
    else:
        stamp = SimpleNamespace(sec=seconds, nanosec=rest * 1_000_000)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp), ms=milliseconds, text=text)


class Rig:
    """A synchronizer, its sources, and its outputs as tuples of milliseconds."""

    def __init__(self, make_filter, make_synchronizer, inputs=2):
        self.sources = [make_filter() for _ in range(inputs)]
        self.synchronizer = make_synchronizer(self.sources)
        self.sets = []
        self.synchronizer.registerCallback(lambda *messages: self.sets.append(messages))

    def send(self, source, *milliseconds):
        for each in milliseconds:
            self.sources[source].signalMessage(message(each, text=str(source)))

    @property
    def stamps(self):
        return [tuple(each.ms for each in messages) for messages in self.sets]


@pytest.fixture
def exact(api):
    return lambda queue_size=10, inputs=2: Rig(api.filter, lambda fs: api.exact(fs, queue_size), inputs)


@pytest.fixture
def approximate(api):
    return lambda slop, queue_size=10, inputs=2: Rig(
        api.filter, lambda fs: api.approximate(fs, queue_size, slop), inputs
    )


# exact stamps


def test_messages_of_the_same_stamp_are_delivered_together_in_the_filters_order(exact):
    rig = exact()
    rig.send(1, 100)
    assert rig.stamps == []
    rig.send(0, 100)
    assert rig.stamps == [(100, 100)]
    assert [each.text for each in rig.sets[0]] == ["0", "1"]


def test_a_set_is_delivered_once(exact):
    rig = exact()
    rig.send(0, 100)
    rig.send(1, 100, 100)
    assert rig.stamps == [(100, 100)]


def test_stamps_that_differ_by_a_nanosecond_are_not_the_same(exact):
    rig = exact()
    near = message(100)
    near.header.stamp.nanosec += 1
    rig.send(0, 100)
    rig.sources[1].signalMessage(near)
    assert rig.sets == []


def test_every_pair_is_found_whatever_the_order_of_arrival(exact):
    generator = random.Random(0)
    stamps = list(range(0, 800, 100))
    rig = exact(queue_size=len(stamps))
    arrivals = [(source, stamp) for source in (0, 1) for stamp in stamps]
    generator.shuffle(arrivals)
    for source, stamp in arrivals:
        rig.send(source, stamp)
    assert sorted(rig.stamps) == [(stamp, stamp) for stamp in stamps]
    assert all([each.text for each in messages] == ["0", "1"] for messages in rig.sets)


def test_a_pair_that_is_completed_late_is_delivered_late_and_not_withheld(exact):
    rig = exact()
    rig.send(0, 100, 200)
    rig.send(1, 200, 100)
    assert rig.stamps == [(200, 200), (100, 100)]


def test_a_message_without_its_partner_is_never_delivered_and_holds_up_nothing(exact):
    rig = exact()
    rig.send(0, 100, 200, 300)
    rig.send(1, 200, 300)
    assert rig.stamps == [(200, 200), (300, 300)]


def test_one_calibration_does_not_serve_two_images(exact):
    rig = exact()
    rig.send(1, 100)
    rig.send(0, 100, 133, 166)
    assert rig.stamps == [(100, 100)]


def test_a_full_queue_drops_its_oldest_message(exact):
    rig = exact(queue_size=3)
    rig.send(0, 100, 200, 300, 400)
    rig.send(1, 100, 200, 300, 400)
    assert rig.stamps == [(200, 200), (300, 300), (400, 400)]


def test_oldest_means_by_stamp_so_a_full_queue_is_deaf_after_a_jump_back(exact):
    rig = exact(queue_size=3)
    rig.send(0, 5000, 5100, 5200)
    for stamp in (100, 200, 300):
        rig.send(0, stamp)
        rig.send(1, stamp)
    assert rig.stamps == []


def test_no_queue_grows_beyond_its_bound(exact):
    rig = exact(queue_size=5)
    rig.send(0, *range(1000))
    rig.send(1, *range(5000, 6000))
    assert [len(queue) for queue in rig.synchronizer.queues] == [5, 5]


def test_a_set_of_three_waits_for_the_third(exact):
    rig = exact(inputs=3)
    rig.send(0, 100)
    rig.send(2, 100)
    assert rig.stamps == []
    rig.send(1, 100)
    assert rig.stamps == [(100, 100, 100)]


def test_callbacks_get_the_arguments_that_they_registered_with_and_all_are_called(api):
    sources = [api.filter(), api.filter()]
    synchronizer_ = api.exact(sources, 10)
    calls = []
    synchronizer_.registerCallback(lambda a, b, *more: calls.append(more), "first", 1)
    synchronizer_.registerCallback(lambda a, b, *more: calls.append(more), "second")
    for source in sources:
        source.signalMessage(message(100))
    assert calls == [("first", 1), ("second",)]


def test_a_synchronizer_is_itself_a_filter(api):
    sources = [api.filter(), api.filter()]
    inner = api.exact(sources, 10)
    chained = []
    outer = api.filter()
    outer.registerCallback(lambda *messages: chained.append(len(messages)))
    inner.registerCallback(outer.signalMessage)
    for source in sources:
        source.signalMessage(message(100))
    assert chained == [2]


# approximate stamps


def test_stamps_within_the_slop_are_paired(approximate):
    rig = approximate(slop=0.02)
    rig.send(0, 100)
    rig.send(1, 115)
    assert rig.stamps == [(100, 115)]


@pytest.mark.parametrize("apart", [20, 21, 500])
def test_stamps_as_far_apart_as_the_slop_or_more_are_not_paired(approximate, apart):
    rig = approximate(slop=0.02)
    rig.send(0, 100)
    rig.send(1, 100 + apart)
    assert rig.stamps == []


def test_a_slop_of_zero_pairs_nothing(approximate):
    rig = approximate(slop=0.0)
    rig.send(0, 100)
    rig.send(1, 100)
    assert rig.stamps == []


def test_the_nearest_of_several_candidates_is_chosen(approximate):
    rig = approximate(slop=0.1)
    rig.send(0, 100, 130, 160, 190)
    rig.send(1, 155)
    assert rig.stamps == [(160, 155)]


def test_what_was_paired_approximately_is_used_up_and_the_rest_is_kept(approximate):
    rig = approximate(slop=0.1)
    rig.send(0, 100, 130)
    rig.send(1, 131, 132)
    assert rig.stamps == [(130, 131), (100, 132)]
    assert [len(queue) for queue in rig.synchronizer.queues] == [0, 0]


def test_a_set_of_three_lies_within_the_slop_as_a_whole(approximate):
    rig = approximate(slop=0.02, inputs=3)
    rig.send(0, 100)
    rig.send(1, 130)
    rig.send(2, 115)  # within the slop of both, but they are not of each other
    assert rig.stamps == []
    rig.send(1, 112)
    assert rig.stamps == [(100, 112, 115)]


def test_approximate_queues_are_bounded_and_drop_the_oldest(approximate):
    rig = approximate(slop=0.01, queue_size=2)
    rig.send(0, 100, 200, 300)
    rig.send(1, 100, 200, 300)
    assert rig.stamps == [(200, 200), (300, 300)]
    rig.send(0, *range(1000, 100000, 1000))
    assert len(rig.synchronizer.queues[0]) == 2


def test_a_message_older_than_a_full_approximate_queue_is_dropped_at_once(approximate):
    rig = approximate(slop=0.05, queue_size=2)
    rig.send(1, 100)
    rig.send(0, 500, 600)
    rig.send(0, 100)
    assert rig.stamps == []


@needs_ros
@pytest.mark.parametrize("allowed", [False, True])
def test_messages_without_a_stamp_are_dropped_unless_allowed(api, allowed):
    from rclpy.clock import ROSClock

    sources = [api.filter(), api.filter()]
    synchronizer_ = api.approximate(sources, 10, 10.0, allow_headerless=allowed)
    sets = []
    synchronizer_.registerCallback(lambda *messages: sets.append(messages))
    stamped = SimpleNamespace(header=SimpleNamespace(stamp=ROSClock().now().to_msg()))
    sources[0].signalMessage(stamped)
    sources[1].signalMessage(SimpleNamespace(text="no header"))
    assert len(sets) == (1 if allowed else 0)


# threads


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_two_threads_that_feed_it_lose_no_pair_and_mix_none(api, kind):
    count = 400
    sources = [api.filter(), api.filter()]
    synchronizer_ = api.exact(sources, count) if kind == "exact" else api.approximate(sources, count, 0.0005)
    sets = []
    inside = []

    def collect(first, second):
        inside.append(1)
        assert len(inside) == 1, "two callbacks at once"
        sets.append((first.ms, second.ms, first.text, second.text))
        inside.pop()

    synchronizer_.registerCallback(collect)

    def feed(index):
        stamps = list(range(count))
        random.Random(index).shuffle(stamps)
        for stamp in stamps:
            sources[index].signalMessage(message(stamp, text=str(index)))

    threads = [threading.Thread(target=feed, args=(index,), daemon=True) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert sorted(sets) == [(stamp, stamp, "0", "1") for stamp in range(count)]


# what message_filters does not promise


@pytest.mark.parametrize(
    "make", [lambda fs: LocalTimeSynchronizer(fs, 5), lambda fs: LocalApproximateTimeSynchronizer(fs, 5, 0.1)]
)
def test_ours_goes_on_after_a_callback_that_raised(make):
    sources = [LocalFilter(), LocalFilter()]
    synchronizer_ = make(sources)
    sets = []

    def callback(first, second):
        sets.append(first.ms)
        if first.ms == 1000:
            raise ValueError("a bad message")

    synchronizer_.registerCallback(callback)
    sources[0].signalMessage(message(1000))
    with pytest.raises(ValueError, match="a bad message"):
        sources[1].signalMessage(message(1000))
    sources[0].signalMessage(message(2000))
    sources[1].signalMessage(message(2000))
    assert sets == [1000, 2000]


def test_ours_goes_on_after_a_message_without_a_stamp():
    sources = [LocalFilter(), LocalFilter()]
    synchronizer_ = LocalTimeSynchronizer(sources, 5)
    sets = []
    synchronizer_.registerCallback(lambda *messages: sets.append(messages))
    with pytest.raises(AttributeError):
        sources[0].signalMessage(SimpleNamespace(text="no header"))
    sources[0].signalMessage(message(100))
    sources[1].signalMessage(message(100))
    assert len(sets) == 1


def test_the_modules_names_are_message_filters_where_it_is_installed_and_ours_elsewhere():
    expected = upstream() if HAS_MESSAGE_FILTERS else ours()
    assert synchronizer.Subscriber is expected.subscriber
    assert synchronizer.TimeSynchronizer is expected.exact
    assert synchronizer.ApproximateTimeSynchronizer is expected.approximate


# over DDS


@pytest.mark.kilted
@pytest.mark.ros
@needs_ros
def test_images_and_calibrations_that_were_really_sent_are_paired(api, ros_domain):
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo, Image

    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    node = rclpy.create_node("synchronizer_test", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        qos = QoSProfile(depth=20)
        images = api.subscriber(node, Image, "test_image", qos_profile=qos)
        infos = api.subscriber(node, CameraInfo, "test_camera_info", qos_profile=qos)
        pairs = []
        api.exact([images, infos], 10).registerCallback(
            lambda image, info, tag: pairs.append((image.header.stamp.sec, info.header.stamp.sec, image.width, tag)),
            "tag",
        )
        image_publisher = node.create_publisher(Image, "test_image", qos)
        info_publisher = node.create_publisher(CameraInfo, "test_camera_info", qos)

        def spin_until(condition):
            end = time.monotonic() + 20
            while not condition() and time.monotonic() < end:
                executor.spin_once(timeout_sec=0.05)
            assert condition()

        spin_until(lambda: image_publisher.get_subscription_count() and info_publisher.get_subscription_count())
        for second in (1, 2, 3, 4):
            image = Image(width=second)
            image.header.stamp.sec = second
            image_publisher.publish(image)
            if second != 2:
                info = CameraInfo()
                info.header.stamp.sec = second
                info_publisher.publish(info)
        spin_until(lambda: len(pairs) == 3)
        assert sorted(pairs) == [(1, 1, 1, "tag"), (3, 3, 3, "tag"), (4, 4, 4, "tag")]
        assert images.getTopic() == "test_image"
        node.destroy_subscription(images.sub)
        spin_until(lambda: image_publisher.get_subscription_count() == 0)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()
