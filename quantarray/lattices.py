"""The lattices of ggml's IQ1, IQ2 and IQ3 types: each entry is the values of 4 or 8 elements.

They are what its authors found by clustering, and follow from no formula: `ggml-common.h` is where
they are defined.
"""

import base64
import functools
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lattice:
    """Entries of `width` values each, of the few that `values` lists.

    An entry is stored as one number of 16 bits: the indices of its values in `values`, the first in
    the lowest `16 // width` bits. These numbers ascend. `packed` holds the differences between
    them, little-endian, deflated, in base 64.
    """

    values: tuple[int, ...]
    width: int
    packed: str

    @functools.cached_property
    def table(self) -> NDArray[np.int8]:
        """The values: shape (entries, width)."""
        steps = np.frombuffer(zlib.decompress(base64.b64decode(self.packed)), "<u2")
        entries = np.cumsum(steps, dtype=np.uint16)
        bits = 16 // self.width
        digits = (entries[:, None] >> (bits * np.arange(self.width))) & ((1 << bits) - 1)
        table: NDArray[np.int8] = np.asarray(self.values, np.int8)[digits]
        table.flags.writeable = False
        return table


IQ2_XXS = Lattice(
    (8, 25, 43),
    8,
    "eNpNkc0rRGEUxn/vHe8Y3800ZkaR6yMpFnfDTJKakkTZSFkow0psJIqampI/YkoxSSkplIUSC1K29la2UsrCRvHcO1fpds"
    "+555znPOc554JDRI9DrWyjfFRvOviOUSffrjhGhsUgZxlgnCQryroUKBk/Gw9xUeG6AlyShTDuo0d8cbY1wVOvy4KxIaYt"
    "nDlMkVHuSfBuq3ydwvUG89aC6R71YjoW+43xY6tqljJTHJDiLVDhkaekyj6XnFtf9QgdYnI4kb2W/wlxKU6F7WHQbJsMm1"
    "yY29b/G8do1rzqJutSkle/lcYWcqokKAcaCtK/o+gF41R5LTfMi6OLB6ZZtz5fTHsXZIuMscy7NDi6xReznJm48tPqf+Lb"
    "+v392mhOvZNUdKMGITe4c+7S/i5ZqdjVzfp55sP8/QuXChPMsKW6y5FxTJP5tP5t21lSdpVHXaybbpqMFznkNTrDEHuan3"
    "FyNVf8AqMtPnA=",
)
IQ2_XS = Lattice(
    (8, 25, 43),
    8,
    "eNp9ksFLVGEUxX/fG569ZJgaGceMMZ8mgxHFw8FFbSQTUiQXgY0j6jgutIgkCpyIWeS+dRBCiC1ahrsgCFetWtSf4Npdy3"
    "Dh+b55UzPDjAzvzb333Xvuuede8Ejo53HBvRP6r0cG2/yLenJNtq8vlbacOkpzVpLAISV50RIdcW+fm/RSNed38pQz0hUj"
    "zTC7zspyVd+nqZlmNrZLLmYyTiisovMi7ilSVSRgW9GKfz6LpHIGurKIyCj6LGYbCXXftGdZxTLC3I0rjuRN8tVYz+O2vA"
    "neKKvCCUsU/dYpGn1Cp7q1AobYY5Q1zVVyKINieKS50jzgibx3LJtACFn1KUidH8p8zRU26FG02t994nbtOs/si0GZOv8B"
    "29u03sd/bZ47y06/zKYUuivv0DRQLpHio1gX3Ax7nPqdLiiKlbNX4/GdGSEVTeMGQnULxSbQhAEfpMAdyibDLaHPqTKvmv"
    "um5jcYpRjjum5hzOSZZdtk+eu4lFn1nvKNYxYsq/5OFxAJy+IV/+07rZ6f1X9d/jXZpXirCXENuaE7m9HeXvGI98bubdLV"
    "57W7nFlTfoo+SjG3rG6hpr1O80eKVI3PlFPhN1uq+cJlb5FP/GSefenU4/bbyw6HynkofW1slMfuBhf5ZQq81HQ2apVZ4a"
    "3sAz1b0vUMx8dLCw==",
)
IQ2_S = Lattice(
    (8, 25, 43),
    8,
    "eNqdVc9rE0EU/qZlGjMMDR66dmNI/FFFKoVgQaqIBw9C8FaQtFJY9SAVbclFCqWXCP4H0lvPBW968yDkT/PLzGwys7uzxr"
    "LMzM7bN9+8970fCyxhmc8SGmZe5molaWHfdPsb3l5D8hlWaHYKpxrUs5ja7DXHQYCkiDzXfWiQFVaRiXo7ipZ3ghub3j2+"
    "pox42AlselewKJffNvNIlH2Unhc+qkQLiWFKz+S9ALGFEa7zfRUr1LiPAQ5lleftErN+vFSt1/HI+n4fcUjjjXa2T9etqM"
    "//x2RMw3FaYrmPTQxFGNNe6eRZBVaKJ3hvEBL8kLFY2Xi0aI3i48dIu3t0YJ/CuolQm7sdrl3si2LGLeZZQoyx8zHFpfB5"
    "fopbzpJv+MIbX2CDmCdrIYt5bNs1taBLGdGM1Etd7PKs1SYfAubFVfNskaxQLkajCkb7uIcDYXM1dn4jejbBJ/c2kXUVVV"
    "8nV8vplF6NxaKnq6wfzzJoIsrfFftHnlkT3vYZd7EvbX8Iu9K/eUrJk+XrFXuxjFjSJ3KXlXqM7zgSU8lrbOOQknWRIVub"
    "I9vO0il1Qu11nmpGthx3Q1O7jZnkZ4nJ3sI8KpzMIjIJKnAXGddnzLE/eMyzD1iRmfTt09Foz1EULt1NH/BG1OfhHr9keE"
    "keL0Qe3Y/0dkD5czGS+R/xmquJXb6d074LrrYn7ZnZdqQp4gA3WfUpdsRv0cUpfuERvlIj4VjBW9zBXxjUTgg=",
)
IQ3_XXS = Lattice(
    (4, 12, 20, 28, 36, 44, 52, 62),
    4,
    "eNpFkD9Lw1AUxU9CCQkxhhKCUGoMxU1CEHcR1+Lg7kfSkkEnBxUdi3Ry0VKzO4h0F/VzCP7u6x8J7933zjvn3HMj+XwJq6"
    "OIPVVX+9TzJZqCx65m6qtZslOHmKanQAXswKkzDXWvXRjG9h2+p1I/qjWG7auCfRuuvBfVdJEmDjHsc9071bFGnApS5fhc"
    "4zHUO/sA30tte4Vew38ny9rVzHnGS4cDN1njbouUOXtOHpvtjNXiPyF1D+6FZ2lqvYSrGSu4yTpFRn123XJeSt2Q5FdbpB"
    "nh3sdhBlKRsdJDmKHxQTskHcOKUAS60yGsE7ysc6UrL3bu32FN5wZGSZ2BHHE71RSmzd2A7nhzxyydYgrjCac3NJtey+mL"
    "zvZufyAiSak5c32QK9Ejma1fC2r/aKAN7w+/SDdw",
)
IQ3_S = Lattice(
    (1, 3, 5, 7, 9, 11, 13, 15),
    4,
    "eNpNk81u00AUhS8TJ7XbeKw4Lqihjhu2BdFK7BASPB4F2gi6Q6BKwK78lC0sui8SgndgifoKfPd4UqqRM3fuzznn3pmY3W"
    "ANLFghK7DW2TOLVmIPdA6yK04De5ryxsrawJORkRFt+S3tUH7H8+wN5TjaCqnFWnJ2v2M6RwQt2KZwntlUiO6N+u3sJdFt"
    "PsePQu+wXglhbgtOR1K+ynElp/l/nUGrSD14TaB2Iq3Ov66qSmyV4iM7sDrNJUtKampqmLyvQrkjRUsURNT0U2rF0s/k4z"
    "XMzn7iGSj+7WqiDfq8eplfVxmkz3sp0oz686Z4AzMKUtTPf5w4vkjZTNhr8NfEZ3ieq8cx/a5Yo92016jfwl8pts/vEdGJ"
    "OKaoXJI5pP4B0fd8fjtTMr7m1ZXC3irTDGvvQ54qTWJHGg4UqXU/Z5pNmXqbaI/M21/EEJZK08jsjbCdr2a19s527TxNd2"
    "oXeX8nmV5YxdrhjQz1vioh9dFTqXPcmv0WudGOxV6mW7pgvwNiwQSOsWf2BI0Lu8s0h3abSLSzPCaVPV+D/SJ1XtHDY97R"
    "RAwj9H2mroCr5eyZh9RsE23sB98uVZfqZG6X+erN3rMTOlizR/YJNVF9+ywb9s7+kNvZW3D20fXBHtovav7mrmYLq6FvZz"
    "pBzZTMYN91pyPNZkE/e5znYPf/6j37Ddu53edF/gN3oD85",
)
IQ1 = Lattice(
    (-1, 0, 1),
    8,
    "eNqNV41u4zYMFmUpdmpff7B1ThNf0wId2u0Oe53emgA9YIfu1q3YM+zNxz/Rkp3shiKNLVEU+ZH8yDjnXYV/3tUuuBa/F/"
    "jZuI7XzvBJVlrbe3KguxU+tW5wEZ+W+Imog9a9e2/nd7PzpLvBt+h6XaGbA/6Xt99BTg4o1aHUCd7ykZ/3fCPgnkj0uBvx"
    "DOh6xTrEm96do07xK+3+idIP+N2pVIOrZPvA1ka8+ZCt8SAKOz3Too4BJQBvk5UHxaY76nuDshuzdNx9iZDprPhuQZa0P6"
    "h0YBx85q1gPygWgKsJjei27pQ1Ve7NIrrQM/R+gp+tRWsPdGOriDZ4foP3Acd0xFHODhzvYOjXauevlgnzmMham9kImWTP"
    "9wDL5lEFRqfK4p8sim6dnanVVrK8svMDrtL7GUp/hciZlfCL2V3eMuECM8WrFwFz2ZvXoz2RsW34nfZI02f3DtH27noSnZ"
    "RjEbW9xDwnBJcyK6a7KdM6tiRqrBJqW5RccIT3fOO0iiPvDbO9HZxplm6LqHpekRvJoi/4TNb1RS6K7K3F32vlU4xafuu0"
    "fluOxoYz7cS9HKwwQjx5/oN+P3PMyNtbvbezGInHpHk3OTV6fKBiL6WW78xTsfkX9jQyr8kN4mXKsErzpc7i31o+SwWJNe"
    "B+s0oa0KeK2Su6G9y9wNr6HtE6n2hrNYO8IlybtsZ9cjCrpci8Ob6nLB+znlauDuSs2PzIXNtmURMeTnwIWjmC0RXKCgOL"
    "X8/Q8UqLuVgrOsuidrzmYuA8WWh+iMyara8LhvKaUUOGe9L4hrHxFnlC8gPhGHMeiuZDLPylM9f6nXh+XzCVWEE+SKxLVJ"
    "ONvjhBiIjOPB6PWpViy/UkZmTTjdYzoXHiPgOYDolbKPhRGCaPLBSo9Xgiz0eJO9mRIwtHWbb0bu7t9O5eYzTdGfPtUdf8"
    "hH2nulfG0FD0Kl90kCvNA1kLXJ9pZQcj8oTtEis9ryfxSOyQHE0sfKieOs67b0d9xVXTZHd0yFAB+T5yLwBlCYmlSCytrp"
    "dmP9n5JY7M21n2Jf5cuUvqwxkTdYxJpX0sqN20tsa7G5sTvvL/e84E6ZCN+1Hnl78AFFvBrc+mvmmX3aqcNywST+yzLlth"
    "LU45qMoy4r3GP9gsIQg8cW9o+S7Qqs2j5xlPwsErf3qNacDvgJ5I1C40kg3zTo19d6dIJBbqNWd9xgpSryu+pdUaDIycdz"
    "+pxqhsA9z7T/nezj1dTjtNa/2iOzofesuxaFznmYu9RrQ9Oivea/+b634FmTLfcW1IbD7QdINoLPVU8n/aA0auy2eUU56N"
    "R1tlwgnKj4H76hIx2c/6d29zL3WG/gAOqfPkc5e3OrzlSB6blUn+57nO2HHEgO2N1iEo6zdFFyrnvNoyI9qMmxh6y1Gusn"
    "62N7+2E6wqnvi9+859gtSZaH2NTyUPiX7RnTpyw/1iOuM2zDDwP7vQSiObM/zCavpRK4GqeJExU+rt5NeaZ0ngTgJOGGkP"
    "F5oDUacayiCqhBubq54LLMbZeX2AUdK02NtvLqmvZ5yCzg1V4fE764iv8VgmELvN80t4Waz9qEgmO25Zjt7/YOkFd4xvTY"
    "p/Q6e/v8Lsl8Xg/pnkQjkRdMV8Jj3gzaIR2OtgbEjo33H+JPZEhoSSae7/w/czndIHfkrsdY+7r+6Qlnkt/Qtzf1EF",
)
