"""Images -> Gaussian; Gaussian and score model -> skipped steps, score errors.

Nothing here is imported by the other folders; what it shares with them lies in files.

    gaussian    N(mu, U diag(lambdas) U^T + rest): fit, score, denoise, teleport, save, load; isotropic = rank 0
    decompose   means and variances of images; the memory that a covariance takes
    low_rank    the leading eigenvectors of images too large for that, in a few streams over them
    diagonal    a Gaussian of independent pixels or spatial frequencies
    mixture     Gaussian mixture, one Gaussian a class, the training images as points
    span        a mixture in the space that its components span: its flow, fast
    clusters    images -> mixture: k-means++, EM
    flow        the contract of all of them; flows without a formula, integrated; Teleport: the jump before any denoiser
    inputs      a run and the statistics of its data, checked against each other
    closed_forms  those that a command sets beside a network: names, labels, colours
    measures    how much of a network's score a closed form explains: over images, and eigenvector by eigenvector
    cells       a result cell with arrays beside it, made once
    sweeps      the cells of a sweep over skips: made, measured, resumed
    summaries   what a sweep shows: intervals, the recommended jump, tables
    sweep_figures   its figures
    intervals   delete-one-block jackknife of a Frechet distance and of its paired change

Commands: get_parameters (data set -> gaussian_params/), sweep_skips (run -> RUN/sweeps/NAME/ cells),
process_experiments_with_skips (cells -> figure, table, recommended skip), compare_scores (run -> RUN/scores/ cells),
plot_scores (cells -> figures, summary), slice_scores (planes of the score field through images -> RUN/slices/ cells, figure),
compare_flows (the network's flow against closed forms' from the same noise -> RUN/flows/ cells, figures),
map_mixtures (mixtures of Gaussians by components, rank and level -> RUN/mixtures/ cells, figures),
draw_samples (run and statistics -> images that begin with a jump, RUN/samples/),
compare_metrics (two results -> a table, if they were measured alike).
"""
