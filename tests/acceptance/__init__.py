"""RealDevWorld: an application is accepted because a browser used every feature, and the numbers on its pages are right.

W. Bian et al., "You Don't Know Until You Click: Automated GUI Testing for Production-Ready Software Evaluation", arXiv
2508.14104 (RealDevBench and AppEvalPilot). The diagnosis after a failure follows "DiagEval", arXiv 2605.17439.

    python -m tests.acceptance run --app=table                       # the cases of one application, with evidence
    python -m tests.acceptance run --repeat=3 --out=DIR              # all, three times
    python -m tests.acceptance defects                               # recall of planted defects and false fails
    python -m tests.acceptance generate --app=table                  # cases from the feature manifest
    python -m tests.acceptance agent --app=table                     # AppEvalPilot, behind an OpenAI-compatible endpoint
    python -m tests.acceptance label|agree|gate --out=DIR

Deviations from the paper: the judge is deterministic and a model's verdict can never make a Fail a Pass; locators are roles,
labels and test ids, never pixels; what a model answers is data, never code. It runs on any local application: `apps.py` says
how one is started, `case_files/*.yaml` what it must do.
"""
