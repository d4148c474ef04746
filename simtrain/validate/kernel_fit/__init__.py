"""Fits of kernel curves to measured tables, a file per kind of kernel; :mod:`simtrain.validate.calibrate` does one after the other."""
