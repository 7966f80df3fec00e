from xent.reference import *  # temporary
