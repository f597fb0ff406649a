"""Images -> trained score model -> representations, samples, moments.

Doors (*) are the public interface: what the other folders, and you, may import. The rest serves them.

    arrays*              a folder of arrays: .npy files, and meta.json written last = finished
    results*             a result cell: one JSON, its path lists its key, its content the value and its protocol
    locks*               one command at a time where two would spoil each other's files
    figures*             one style; every figure as PNG with its numbers beside it as CSV
    reports              what a command says beside its work, which must not end it
    experiment*          a command's line, errors, configuration, randomness, device, progress
    ranks*               the processes of torchrun share one command's work
    data*                data sets as uint8 array folders; pixel range and model space
    sources raw          the table of built-in data sets; one split before it is written
    synthetic digits cifar pictures own_arrays   what reads them: drawn, MNIST's family, CIFAR, image files, your own arrays
    blocks               a large array written on several processes, resumed where it was killed
    sde*                 linear SDEs in the one coordinate `level` = sigma / alpha
    precondition         c_in, c_noise, c_skip, c_out around a network
    objective            where levels are drawn in training, and what an error counts at each
    layers unet          NCSN++ with blocks by name
    encoder folded       (x0, t) -> Posterior(mean, logvar); the same for use alone, normalisation in the convolutions
    score_model*         network, preconditioning and encoder: denoise, score, encode, loss terms by name
    augment              random changes of a batch of images: a function of (image, numbers) alone
    bounds               what a configuration may hold, field by field
    training             one training step after another: batches, averages, checkpoints, metrics
    footprint            what a run will cost, from shapes alone
    sampling             images that a run makes, and pictures of them while it trains
    ema                  averages of weights
    run_state board      is a run being trained; its curves for TensorBoard
    samplers*            generators over decreasing levels
    passes*              sums over many rows, shared by ranks and resumed where they were killed
    moments*             streaming mean and second moment, exact for pixels
    features* fid*       images -> features; moments and features -> Frechet and kernel distances
    trajectories*        representations of N images at T times
    readouts* encoding   sources of representations; one pass of them over the images, into stores
    row_files*           a large array written by rows, by ranks side by side, resumed where it was killed
    checkpoint*          save, resume, load a run

Commands: prepare_data, main (--mode train | eval | sample), representations, list_trajectories, train_features,
measure_samples, list_runs, doctor.
"""
