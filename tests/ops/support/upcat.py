"""The decoder operator in a form that the test names, whatever the rule would pick."""

from msa_ops import partial_conv2d_upcat

#: The two forms of the decoder operator, and the flag of each in the raw operators.
FORMS = {"phases": True, "concatenation": False}


def upcat(form, *args, **kwargs):
    """Calls partial_conv2d_upcat with form=form."""
    return partial_conv2d_upcat(*args, form=form, **kwargs)
