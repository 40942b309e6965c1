"""What every door says of a model of another Keras backend; a script, as a process has one."""

import os

import keras
import numpy as np

import gns_keras


def build() -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def main() -> None:
    x, y = np.ones((64, 2), np.float32), np.ones((64, 1), np.float32)
    sweep = {"batch_sizes": [8], "goals": [0.1], "max_examples": 100, "verbose": 0}
    doors = {
        "monitor": lambda: gns_keras.NoiseScaleMonitor().set_model(build()),
        "scheduler": lambda: gns_keras.BatchSizeScheduler().set_model(build()),
        "sweep": lambda: gns_keras.sweep(build, (x, y), **sweep),
    }
    for name, enter in doors.items():
        try:
            enter()
            print(name, "nothing")
        except Exception as error:
            print(name, type(error).__name__, str(error).replace("\n", " "))
    # The statistics need no backend.
    result = gns_keras.estimate_noise_scale(np.ones((4, 2)), np.full(4, 0.75), np.full(2, 8))
    print("estimate", round(result.value, 6))


if __name__ == "__main__":
    print(os.environ["KERAS_BACKEND"], keras.backend.backend())
    main()
