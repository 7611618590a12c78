//! A larger capture: random moments of it, and its named ones.

use journal::image::{Backing, Image};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use system_tests::agent::agent;
use system_tests::model::{CaptureSet, Volume};
use system_tests::{samples, seed};

#[test]
fn random_moments_equal_the_naive_model() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let set = CaptureSet::open("large");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = set.replay_arguments(folder.path(), "128M");
    // RustHDL's card makes the same journal (small_capture.rs), in more than twice the time.
    arguments.extend(["--engine", "verilated", "--json"].map(String::from));
    let replay = agent(&arguments).fine().json();
    println!("{replay}");
    assert_eq!(replay["entries"], set.count());
    let path = folder.path().join("journal");
    let journal = path.display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let ordered = set.in_journal_order(&log);
    assert_eq!(ordered.len(), set.count());
    agent(["verify", &journal]).fine();

    let mut moments: Vec<(usize, usize)> = (0..samples("CHRONO_RESTORES", 60))
        .map(|_| (random.random_range(0..=ordered.len()), random.random_range(0..set.volumes().len())))
        .collect();
    for moment in set.moments["moments"].as_array().unwrap() {
        let counts = moment["volumes"].as_object().unwrap().values();
        let order: u64 = counts.map(|volume| volume["writes"].as_u64().unwrap()).sum();
        moments.extend((0..set.volumes().len()).map(|volume| (order as usize, volume)));
    }
    moments.sort_unstable();
    let mut models: Vec<_> = set.volumes().iter().map(|(name, size)| Volume::new(name, *size)).collect();
    let mut applied = 0;
    for (order, volume) in moments {
        for write in &ordered[applied..order] {
            models.iter_mut().for_each(|model| model.apply(write));
        }
        applied = order;
        let model = &models[volume];
        let reader = journal::JournalReader::open(&path).unwrap();
        let base = folder.path().join(format!("{}.base", model.name));
        let at = journal::Moment::Order(order as u64);
        let image =
            Image::open(reader, &model.name, at, Backing::Base(&base), false, &mut |_, _| {}).unwrap();
        let mut bytes = vec![0; model.bytes.len()];
        image.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == model.bytes, "volume {}, order:{order}", model.name);
        check_hash(&set, order, model);
    }
}

/// At the order of a named moment the model, and so the image, is what vblade had.
fn check_hash(set: &CaptureSet, order: usize, model: &Volume) {
    for moment in set.moments["moments"].as_array().unwrap() {
        let volumes = moment["volumes"].as_object().unwrap();
        let at: u64 = volumes.values().map(|volume| volume["writes"].as_u64().unwrap()).sum();
        if at as usize == order {
            let expected = &volumes[&model.name]["sha256"];
            assert_eq!(expected, model.sha256().as_str(), "moment {}, volume {}", moment["name"], model.name);
        }
    }
}
