"""The states of the two ends of a split driver, as they stand in xenstore.

Source: public/io/xenbus.h.
"""

_HEADERS = ("io/xenbus.h",)

XenbusStateUnknown = 0

XenbusStateInitialising = 1

XenbusStateInitWait = 2

XenbusStateInitialised = 3

XenbusStateConnected = 4

XenbusStateClosing = 5

XenbusStateClosed = 6

XenbusStateReconfiguring = 7

XenbusStateReconfigured = 8
