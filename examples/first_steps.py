# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First steps
#
# Two images, their matches, the camera's motion between them, and the trajectory of a short sequence. The images are
# rendered, so that everything can be held against the truth: nothing is downloaded. With images of your own, begin at
# `loftr_ros.match("a.png", "b.png")`.

# %%
import numpy as np

import loftr_ros
from loftr_ros.geometry.se3 import between, rotation_degrees
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

camera = default_camera(320, 240)
scene = Scene(seed=3)
poses = trajectory(120, seed=3)[60:84:4]  # (4, 4) T_world_camera, in metres
views = [scene.render(camera, pose) for pose in poses]

# %% [markdown]
# ## Matches
#
# Pixels are (u, v), with (0, 0) at the centre of the top-left pixel. Each match has a confidence, and a standard
# deviation in pixels.

# %%
matcher = loftr_ros.load_matcher()
matches = loftr_ros.match(views[0].image, views[1].image, matcher)
print(f"{len(matches)} matches; the first: {matches.points0[0]} -> {matches.points1[0]}, {matches.confidence[0]:.2f}")

# %% [markdown]
# The renderer knows the depth of each pixel, so it is known where each point of the first image is in the second one.

# %%
column, row = matches.points0.round().astype(int).T
rays = np.insert(camera.unproject(matches.points0), 2, 1.0, axis=1)
points = rays * views[0].depth[row, column, None].astype(float)
current_from_first = between(poses[1], poses[0])
expected = camera.project(points @ current_from_first[:3, :3].T + current_from_first[:3, 3])
error = np.linalg.norm(matches.points1 - expected, axis=1)
median_error = float(np.nanmedian(error))
print(f"median error {median_error:.2f} px, median of the predicted standard deviation {np.median(matches.std):.2f} px")

# %% [markdown]
# ## Poses and a trajectory
#
# `FrontEnd` takes one frame after the other. It chooses keyframes, matches each frame with them, and says where the
# camera is, relative to the keyframe and in the trajectory. One camera knows no metres: the trajectory has its own unit
# of length.

# %%
front_end = loftr_ros.FrontEnd(matcher)
places = []
for number, view in enumerate(views):
    result = front_end.process(loftr_ros.Frame(view.image, 1_000_000_000 + number * 100_000_000, "camera", camera))
    places.append(result.place)
    for match in result.matches:
        status, inliers = match.pose.status.name, int(match.pose.inliers.sum())
        print(f"frame {number} against keyframe {match.keyframe.id}: {status}, {inliers} inliers")

# %%
assert all(place is not None for place in places)
turned = [rotation_degrees(place.pose[:3, :3]) for place in places]
truth = [rotation_degrees(between(poses[0], pose)[:3, :3]) for pose in poses]
rotation_error = float(np.max(np.abs(np.subtract(turned, truth))))
print(f"turned by {turned[-1]:.2f} degrees in all; {rotation_error:.2f} degrees at most from the truth")
